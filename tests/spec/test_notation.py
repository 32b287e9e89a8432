"""Strided units in a hand-written spec: what the tracer finds for the same network, and no other."""

import pytest
import torch
from torch import nn

from fedrebasin import PermutationSpec, SpecError

UNITS = 8


class Flattened(nn.Module):
    """A convolution whose channels are flattened in this order of the dimensions."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.conv = nn.Conv2d(1, UNITS, 3)
        self.head = nn.Linear(UNITS * 4 * 5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).permute(0, *self.order).flatten(1))


IMAGES = torch.zeros(2, 1, 6, 7)
ORDERS = {(1, 2, 3): ("conv", 20), (2, 3, 1): (20, "conv"), (2, 1, 3): (4, "conv", 5), (3, 1, 2): (5, "conv", 4)}


def axes(flattened):
    return {
        "conv.weight": ("conv", None, None, None),
        "conv.bias": ("conv",),
        "head.weight": (None, flattened),
        "head.bias": (None,),
    }


@pytest.mark.parametrize(("order", "flattened"), ORDERS.items(), ids=map(str, ORDERS.values()))
def test_strided_units_are_what_the_tracer_finds(order, flattened, tmp_path):
    model = Flattened(order)
    spec = PermutationSpec.from_axes(axes(flattened))
    assert spec.bind(model.state_dict()).groups == PermutationSpec.trace(model, IMAGES).groups
    for known in (spec, spec.bind(model.state_dict())):
        known.save(tmp_path / "spec.json")
        assert PermutationSpec.load(tmp_path / "spec.json") == known
    assert f"head.weight[1: {'x'.join('(0)' if one == 'conv' else str(one) for one in flattened)}]" in str(spec)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(3))
def test_each_order_of_the_factors_is_right_for_one_network_only(order, seed):
    model = Flattened(order)
    for other, flattened in ORDERS.items():
        spec = PermutationSpec.from_axes(axes(flattened))
        if other == order:
            spec.check(model, IMAGES, seed=seed)
        else:
            with pytest.raises(SpecError, match="changes the function"):
                spec.check(model, IMAGES, seed=seed)


def test_factors_on_one_side_are_multiplied():
    state = Flattened((2, 3, 1)).state_dict()
    assert PermutationSpec.from_axes(axes((4, 5, "conv")), state) == PermutationSpec.from_axes(
        axes((20, "conv")), state
    )


@pytest.mark.parametrize("wrong", [(7, "conv"), ("conv", 7), (3, "conv", 5)])
def test_factors_that_do_not_fit_are_refused(wrong):
    with pytest.raises(SpecError, match=r"head.weight\[1\]"):
        PermutationSpec.from_axes(axes(wrong), Flattened((2, 3, 1)).state_dict())


@pytest.mark.parametrize("wrong", [(), ("a",), (4, 5), ("a", "b"), (0, "a"), (-2, "a"), (True, "a"), (2.0, "a"), 3])
def test_what_is_no_notation_is_refused(wrong):
    with pytest.raises(SpecError, match="one name among them"):
        PermutationSpec.from_axes({"w": (wrong,)})
