"""Specs from names and shapes: those that the tracer finds, and errors where they cannot be known."""

import pytest
import torch
from torch import nn

from fedrebasin import PermutationSpec, SpecError
from fedrebasin.models import MLP, ResNet20
from fedrebasin.spec.plain_stack import plain_stack


def moved(spec):
    return {frozenset((axis.key, axis.dim) for axis in group.axes) for group in spec.groups.values()}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 3, 11])
def test_it_is_what_the_tracer_finds(depth, ordered):
    model = MLP(5, width=6, depth=depth)
    state = model.state_dict()
    if not ordered:  # as safetensors files order them: layers.10 before layers.2
        state = {key: state[key] for key in sorted(state)}
    found = plain_stack(state, ordered=ordered)
    assert moved(found) == moved(PermutationSpec.trace(model, torch.zeros(2, 5)))
    found.check(model, torch.randn(3, 5))


def test_layers_without_biases_and_the_models_own_order():
    model = nn.Sequential()
    for name, layer in (("z", nn.Linear(3, 4, bias=False)), ("act", nn.Tanh()), ("a", nn.Linear(4, 2))):
        model.add_module(name, layer)
    assert moved(plain_stack(model.state_dict())) == {frozenset({("z.weight", 0), ("a.weight", 1)})}


def test_names_are_sorted_where_the_own_order_does_not_fit():
    state = {"fc2.weight": torch.zeros(2, 4), "fc2.bias": torch.zeros(2), "fc1.weight": torch.zeros(4, 3)}
    assert moved(plain_stack(state)) == {frozenset({("fc1.weight", 0), ("fc2.weight", 1)})}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (ResNet20().state_dict(), r"conv.weight of shape \(16, 3, 3, 3\) belongs to no dense layer"),
        ({"a.weight": torch.zeros(4, 3), "b.weight": torch.zeros(2, 5)}, "do not feed one another"),
        ({"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(3)}, "a.bias of shape"),
        ({"a.weight": torch.zeros(4, 3), "norm.weight": torch.zeros(4)}, "norm.weight"),
        ({}, "there is no dense layer"),
    ],
)
def test_anything_else_needs_the_model(state, message):
    with pytest.raises(SpecError, match=message) as caught:
        plain_stack(state)
    assert "--model" in str(caught.value)
