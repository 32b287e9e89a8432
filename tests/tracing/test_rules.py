"""Every rule: the symmetries on paper are found, they hold, and what is left alone cannot be moved."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedrebasin import Permutation, PermutationSpec
from tests.tracing.nets import NETS, Attention, mlp
from tests.tracing.nets import members as on_paper
from tests.tracing.oracle import example, movable_alone, outputs, random_model


@pytest.mark.parametrize("name", NETS)
def test_all_symmetries_on_paper_are_found_and_hold(name: str) -> None:
    net = NETS[name]
    torch.manual_seed(0)
    model = net.make().eval()
    spec = PermutationSpec.trace(model, example(net.shape))
    assert spec.checked
    assert spec.log10_symmetries == pytest.approx(net.log10)
    assert set(spec.shapes) == set(model.state_dict())
    assert not [row for row in spec.unpermuted if "check" in row.reason or "no rule" in row.reason]
    assert not movable_alone(spec, model, example(net.shape))


def _keeps_the_function(model: nn.Module, shape: tuple[int, ...], seed: int) -> PermutationSpec:
    x = example(shape)
    spec = PermutationSpec.trace(model.eval(), x, check=False)
    model = random_model(model, seed)
    state = dict(model.state_dict())
    moved = Permutation.random(spec, torch.Generator().manual_seed(seed)).apply(state)
    torch.testing.assert_close(outputs(model, moved, x.double()), outputs(model, state, x.double()))
    return spec


few = settings(max_examples=8, deadline=None)


@few
@given(
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_dense_nets_of_any_shape(widths: list[int], batch: int, seed: int) -> None:
    sizes = [3, *widths, 2]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    spec = _keeps_the_function(nn.Sequential(*layers[:-1]), (batch, 3), seed)
    assert spec.log10_symmetries == pytest.approx(on_paper(*((width,) for width in widths)))


@few
@given(
    groups=st.integers(1, 3),
    inside=st.integers(1, 3),
    outside=st.integers(1, 3),
    norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_grouped_convolutions_of_any_shape(groups: int, inside: int, outside: int, norm: bool, seed: int) -> None:
    width = groups * outside
    layers = [nn.Conv2d(2, groups * inside, 2), nn.Conv2d(groups * inside, width, 2, groups=groups)]
    layers += [nn.GroupNorm(groups, width)] if norm else [nn.BatchNorm2d(width)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 2))
    spec = _keeps_the_function(model, (2, 2, 4, 4), seed)
    blocks = (groups,) if groups > 1 else ()
    expected = on_paper((groups,), (*blocks, inside), (*blocks, outside))
    assert spec.log10_symmetries == pytest.approx(expected)


@few
@given(
    shared=st.integers(1, 3),
    repeats=st.integers(1, 3),
    size=st.integers(1, 4),
    kind=st.sampled_from(["expand", "interleave", "gqa"]),
    seed=st.integers(0, 99),
)
def test_attention_of_any_shape(shared: int, repeats: int, size: int, kind: str, seed: int) -> None:
    spec = _keeps_the_function(Attention(5, shared * repeats, shared, size, kind), (2, 3, 5), seed)
    expected = on_paper((shared,), (shared, repeats), (shared, size), (shared, size))
    assert spec.log10_symmetries == pytest.approx(expected)


def test_running_statistics_move_but_do_not_vote() -> None:
    net = NETS["batch-norm"]
    spec = PermutationSpec.trace(net.make().eval(), example(net.shape))
    assert spec.statistics == {"1.running_mean", "1.running_var"}
    (group,) = spec.groups.values()
    assert {"1.running_mean", "1.running_var"} <= {axis.key for axis in group.axes}


def test_gates_are_one_axis() -> None:
    net = NETS["gru"]
    spec = PermutationSpec.trace(net.make().eval(), example(net.shape))
    first = next(iter(spec.groups.values()))
    assert [str(axis) for axis in first.axes if axis.key == "layer.weight_ih_l0"] == ["layer.weight_ih_l0[0: 3x(4)]"]
    assert {axis.dim for axis in first.axes if axis.key == "layer.weight_hh_l0"} == {0, 1}


def test_a_linear_net_in_both_modes() -> None:
    for mode in (True, False):
        assert len(PermutationSpec.trace(mlp(nn.Dropout()).train(mode), example((4, 3))).groups) == 1
