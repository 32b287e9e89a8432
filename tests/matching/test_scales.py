"""Weights of any size and kind: matched by what they are worth to one another, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrebasin import (
    Aligner,
    AlignTo,
    CycleConsistent,
    MatchingError,
    MergeMany,
    Permutation,
    PermutationSpec,
    SpecError,
    WeightMatching,
)
from fedrebasin.matching import AlreadyAligned
from fedrebasin.matching.steps.assignment import WarmAssignment, assign
from tests.zoo import ZOO, State, mlp, same, state_of

SIZES = [1e-30, 1e-20, 1e-5, 1e5, 1e20, 1e30]


def times(state: State, factor: float, *keys: str) -> State:
    return {key: x * factor if not keys or key in keys else x for key, x in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["auto", "coordinate", "frank-wolfe", "greedy"])
@pytest.mark.parametrize("factor", SIZES)
def test_a_common_factor_changes_no_matching(factor: float, method: str, dtype: torch.dtype) -> None:
    for name in ("mlp", "attention", "grouped"):
        spec = ZOO[name]
        a, b = state_of(spec, 0, dtype), state_of(spec, 1, dtype)
        plain = WeightMatching(method=method)(spec, a, b)
        found = WeightMatching(method=method)(spec, times(a, factor), times(b, factor))
        assert found.permutation == plain.permutation
        assert found.similarity == pytest.approx(plain.similarity, rel=1e-5)
        expected = [value * factor * factor for value in plain.history.objective]
        assert list(found.history.objective) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-200, 1e200, 1e300])
def test_squares_outside_of_double_precision_are_matched(factor: float) -> None:
    spec = mlp(4, 8, 8, 2)
    a = state_of(spec, 0)
    member = Permutation.random(spec, torch.Generator().manual_seed(0))
    found = WeightMatching()(spec, times(a, factor), member.apply(times(a, factor)))
    assert found.permutation == member.inverse()
    assert found.similarity == pytest.approx(1)


@pytest.mark.parametrize("aligner", [AlignTo(), MergeMany(), CycleConsistent()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("factor", SIZES)
def test_copies_of_any_size_are_merged(factor: float, aligner: Aligner) -> None:
    spec = mlp(4, 12, 12, 3)
    a = times(state_of(spec, 0, torch.float32), factor)
    copies = [Permutation.random(spec, torch.Generator().manual_seed(k)).apply(a) for k in range(3)]
    merge = aligner(spec, copies)
    assert all(same(dict(state), dict(merge.states[0])) for state in merge.states)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_layers_of_another_size_are_matched_all_the_same(factor: float) -> None:
    """Of a pair that are no copies: each group lies in layers of one size, so that nothing decides but they do."""
    spec = mlp(6, 20, 4)
    a, b = state_of(spec, 0, torch.float32), state_of(spec, 1, torch.float32)
    joined = PermutationSpec.from_axes(
        {
            "0.weight": ("P", None),
            "0.bias": ("P",),
            "1.weight": (None, "P"),
            "1.bias": (None,),
            "2.weight": ("Q", None),
            "2.bias": ("Q",),
            "3.weight": (None, "Q"),
            "3.bias": (None,),
        }
    )
    found = WeightMatching()(joined, *({**state, **times(_later(state), factor)} for state in (a, b)))
    alone = WeightMatching()(spec, a, b).permutation["P_0"]
    assert torch.equal(found.permutation["P"], alone)
    assert torch.equal(found.permutation["Q"], alone)


def _later(state: State) -> State:
    """The same two layers, as the third and the fourth."""
    return {f"{int(key[0]) + 2}{key[1:]}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize("width", [20, 150])
@pytest.mark.parametrize("factor", [1e4, 1e6, 1e8, 1e12])
def test_a_huge_unit_does_not_hide_the_others(factor: float, width: int) -> None:
    """Of a pair that are no copies: the others are paired as if the huge units were not there."""
    spec = mlp(6, width, 4)
    a, b = state_of(spec, 0, torch.float32), state_of(spec, 1, torch.float32)
    fewer = mlp(6, width - 1, 4)
    alone = WeightMatching()(fewer, *(_without_last(state) for state in (a, b))).permutation["P_0"]
    huge = []
    for state in (a, b):
        state = {key: x.clone() for key, x in state.items()}
        state["0.weight"][-1] = a["0.weight"][-1] * factor
        huge.append(state)
    found = WeightMatching()(spec, *huge)
    assert torch.equal(found.permutation["P_0"], torch.cat([alone, torch.tensor([width - 1])]))


def _without_last(state: State) -> State:
    return {
        "0.weight": state["0.weight"][:-1],
        "0.bias": state["0.bias"][:-1],
        "1.weight": state["1.weight"][:, :-1],
        "1.bias": state["1.bias"],
    }


@pytest.mark.parametrize("factor", [1e4, 1e5, 1e6, 1e8])
def test_a_copy_with_a_huge_unit_is_found(factor: float) -> None:
    spec = mlp(8, 32, 32, 4)
    a = state_of(spec, 0, torch.float32)
    a["0.weight"][3] *= factor
    moved = Permutation.random(spec, torch.Generator().manual_seed(0)).apply(a)
    assert same(WeightMatching()(spec, a, moved).apply(moved), a)


@pytest.mark.parametrize("size", [30, 130])
def test_small_rows_are_assigned_as_if_they_were_alone(size: int) -> None:
    gain = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = assign(gain[1:, 1:].numpy())
    gain[0] *= 1e10
    gain[:, 0] *= 1e10
    gain[0, 0] = 1e20
    for solve in (assign, WarmAssignment().solve):
        assert list(solve(gain.numpy())) == [0, *(best + 1)]


def test_similarity_by_layer_shows_what_large_units_hide() -> None:
    spec = mlp(6, 12, 12, 3)
    a, b = state_of(spec, 0), state_of(spec, 1)
    a["0.weight"][0] = b["0.weight"][0] = 1e6
    found = WeightMatching()(spec, a, b)
    assert found.similarity == pytest.approx(1)
    assert set(found.by_layer) == {"0", "1", "2"}
    assert found.least_similar is not None
    assert found.least_similar[1] < 0.9
    aligned = found.apply(b)
    for layer, cosine in found.by_layer.items():
        x, y = (
            torch.cat([state[f"{layer}.{part}"].flatten() for part in ("weight", "bias")]) for state in (a, aligned)
        )
        assert cosine == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)))


@pytest.mark.parametrize(
    "aligner", [AlignTo(reference=0), MergeMany(), CycleConsistent(), AlreadyAligned(WeightMatching())]
)
def test_everything_measures_layers(aligner: Aligner | AlreadyAligned) -> None:
    spec = mlp(6, 12, 3)
    a = state_of(spec, 0)
    b = {key: x + 0.01 * state_of(spec, 1)[key] for key, x in a.items()}
    if isinstance(aligner, AlreadyAligned):
        layers = aligner(spec, a, b).by_layer
    else:
        layers = aligner(spec, [a, b]).alignments[1].by_layer
    assert set(layers) == {"0", "1"}
    assert all(0.99 < cosine <= 1 for cosine in layers.values())


KINDS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", ["mlp", "attention", "grouped"])
def test_every_kind_of_number_is_matched(name: str, dtype: torch.dtype) -> None:
    spec = ZOO[name]
    a, b = (_as(state_of(spec, seed), state_of(spec, seed + 10), dtype) for seed in (0, 1))
    found = WeightMatching()(spec, a, b)
    wide = [{key: _plain(x) for key, x in state.items()} for state in (a, b)]
    if dtype.is_complex:  # the real part of the inner product is that of the parts
        assert found.similarity >= WeightMatching(method="greedy")(spec, a, b).similarity - 1e-12
    else:
        assert found.permutation == WeightMatching()(spec, *wide).permutation
    member = Permutation.random(spec, torch.Generator().manual_seed(3))
    moved = member.apply(a)
    back = WeightMatching()(spec, a, moved).apply(moved)
    assert all(torch.equal(_plain(back[key]), _plain(a[key])) for key in a)
    assert {x.dtype for x in back.values()} == {dtype}


def _as(real: State, imaginary: State, dtype: torch.dtype) -> State:
    if dtype.is_complex:
        return {key: torch.complex(x, imaginary[key]).to(dtype) for key, x in real.items()}
    return {key: x.to(dtype) for key, x in real.items()}


def _plain(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor.float()


@pytest.mark.parametrize("aligner", [AlignTo(), MergeMany(), CycleConsistent()], ids=lambda one: type(one).__name__)
def test_complex_copies_are_merged(aligner: Aligner) -> None:
    spec = ZOO["attention"]
    a = _as(state_of(spec, 0), state_of(spec, 1), torch.complex128)
    copies = [Permutation.random(spec, torch.Generator().manual_seed(k)).apply(a) for k in range(3)]
    states = aligner(spec, copies).states
    assert all(same(dict(state), dict(states[0])) for state in states)


@pytest.mark.parametrize("matcher", [WeightMatching(), AlreadyAligned(WeightMatching())])
@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_what_cannot_be_read_is_refused_by_name(kind: str, matcher: WeightMatching | AlreadyAligned) -> None:
    spec = mlp(3, 4, 2)
    a, b = state_of(spec, 0, torch.float32), state_of(spec, 1, torch.float32)
    weight = a["0.weight"]
    a["0.weight"] = {
        "meta": lambda: weight.to("meta"),
        "sparse": weight.to_sparse,
    }[kind]()
    with pytest.raises((MatchingError, SpecError), match=r"0\.weight"):
        matcher(spec, a, b)


def test_empty_tensors_are_matched() -> None:
    axes = {"0.weight": ("P", None), "1.weight": (None, "P"), "nothing": ("P", None), "none": (None,)}
    spec = PermutationSpec.from_axes(axes)
    a = {
        "0.weight": torch.randn(4, 3),
        "1.weight": torch.randn(2, 4),
        "nothing": torch.zeros(4, 0),
        "none": torch.zeros(0),
    }
    member = Permutation.random(spec.bind(a), torch.Generator().manual_seed(0))
    assert WeightMatching()(spec, a, member.apply(a)).permutation == member.inverse()
