from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import (
    ActivationMatching,
    MatchingError,
    Permutation,
    PermutationSpec,
    StraightThrough,
    WeightMatching,
)
from fedrebasin.models import MLP, make_model
from tests.zoo import State, same

Batches = list[tuple[Tensor, Tensor]]


def data(count: int = 512, seed: int = 0) -> Batches:
    """Four noisy classes in the plane's sixteenfold space, in batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, 4, (count,), generator=generator)
    inputs = centres[labels] + torch.randn(count, 16, generator=generator)
    return list(zip(inputs.split(64), labels.split(64), strict=True))


def trained(seed: int, width: int = 24, epochs: int = 6) -> tuple[MLP, State]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLP(16, width=width, depth=2, classes=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for inputs, labels in chain.from_iterable([data(seed=seed)] * epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model, {key: tensor.clone() for key, tensor in model.state_dict().items()}


def spec_of(depth: int = 2) -> PermutationSpec:
    axes: dict[str, tuple[str | None, ...]] = {}
    for k in range(depth + 1):
        writes = f"P_{k}" if k < depth else None
        axes[f"layers.{k}.weight"], axes[f"layers.{k}.bias"] = (writes, f"P_{k - 1}" if k else None), (writes,)
    return PermutationSpec.from_axes(axes)


def midpoint_loss(model: MLP, a: State, b: State) -> float:
    middle = {key: (a[key] + b[key]) / 2 for key in a}
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(torch.func.functional_call(model, middle, (inputs,)), labels)
            for inputs, labels in data()
        ]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("method", ["auto", "coordinate", "frank-wolfe"])
def test_a_planted_permutation_of_a_trained_net_is_recovered_exactly(method: str) -> None:
    _, state = trained(0)
    spec = spec_of().bind(state)
    planted = Permutation.random(spec, torch.Generator().manual_seed(3))
    found = WeightMatching(method=method)(spec, state, planted.apply(state))
    assert found.permutation == planted.inverse()
    assert same(found.apply(planted.apply(state)), dict(state))


@pytest.mark.parametrize(
    ("name", "correlation"),
    [("mlp", False), ("mlp", True), ("resnet20", False), ("resnet20", True), ("vgg11-bn", False)],
)
def test_activations_tell_planted_permutations(name: str, correlation: bool) -> None:
    width = {"mlp": 12, "resnet20": 0.25, "vgg11-bn": 0.0625}[name]
    model = make_model(name, (1, 8, 8), 4, width, seed=0).eval()
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(3)]
    spec = PermutationSpec.trace(model, batches[0][:2])
    planted = Permutation.random(spec, generator)
    candidate = planted.apply(state)
    found = ActivationMatching(model, iter(batches), correlation=correlation)(spec, state, candidate)
    aligned = found.apply(candidate)
    with torch.no_grad():
        for inputs in batches:
            middle = {key: (state[key] + aligned[key]) / 2 for key in state if state[key].is_floating_point()}
            expected = torch.func.functional_call(model, state, (inputs,))
            # Units that are dead on this data cannot be told apart, and need not be.
            actual = torch.func.functional_call(model, {**state, **middle}, (inputs,))
            assert torch.allclose(actual, expected, atol=1e-3)
    objective = found.history.objective
    assert list(objective) == sorted(objective)


def test_activation_matching_makes_trained_nets_mergeable() -> None:
    (model, a), (_, b) = trained(0), trained(1)
    found = ActivationMatching(model, data())(spec_of(), a, b)
    assert midpoint_loss(model, a, found.apply(b)) < midpoint_loss(model, a, b)


def test_the_model_is_left_as_it_is() -> None:
    model, a = trained(0)
    model.train()
    ActivationMatching(model, data())(spec_of(), a, a)
    StraightThrough(model, data(128), epochs=1)(spec_of(), a, a)
    assert model.training
    assert same(model.state_dict(), dict(a))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_data_is_an_error() -> None:
    model, a = trained(0, epochs=0)
    with pytest.raises(MatchingError, match="batches"):
        ActivationMatching(model, [])(spec_of(), a, a)
    with pytest.raises(MatchingError, match="batches"):
        StraightThrough(model, [])(spec_of(), a, a)


def test_the_straight_through_estimator_is_no_worse_than_weight_matching() -> None:
    (model, a), (_, b) = trained(0), trained(1)
    found = StraightThrough(model, data(), epochs=2, learning_rate=1e-2)(spec_of(), a, b)
    by_weights = WeightMatching(method="coordinate")(spec_of(), a, b)
    assert midpoint_loss(model, a, found.apply(b)) <= midpoint_loss(model, a, by_weights.apply(b)) + 1e-6
    assert list(found.history.objective) == sorted(found.history.objective, reverse=True)
    assert found.history.objective[-1] == pytest.approx(midpoint_loss(model, a, found.apply(b)), rel=1e-4)
