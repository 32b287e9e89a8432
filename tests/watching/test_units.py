"""Where units are seen: the matcher with the data in hand and the sums from clients find the same permutation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrebasin import ActivationMatching, CalibrationError, MatchingError, Permutation, PermutationSpec, collect_sums
from fedrebasin.matching import match_relations
from fedrebasin.sums import ActivationCorrelation
from fedrebasin.watching import unit_activations, unit_places
from tests.tracing import nets
from tests.tracing.oracle import random_model

from .cases import Net

State = dict[str, Tensor]

VIEWED = ("view-undone",)  # its batches have one size
ALIKE = ("pad", "repeat")  # nets with units that do the same
#: Weights that no module reads, used in every way that a product can be.
BARE: dict[str, Callable[[], nn.Module]] = {
    "functional": lambda: Net(
        lambda n, x: functional.linear(torch.tanh(functional.linear(x, n.a, n.b)), n.c), a=(6, 3), b=(6,), c=(2, 6)
    ),
    "inputs-first": lambda: Net(lambda n, x: torch.tanh(x @ n.a) @ n.c, a=(3, 6), c=(6, 2)),
    "from-the-left": lambda: Net(lambda n, x: (n.c @ torch.tanh(n.a @ x.T)).T, a=(6, 3), c=(2, 6)),
    "einsum": lambda: Net(
        lambda n, x: torch.einsum("bh,oh->bo", torch.tanh(torch.einsum("bi,hi->bh", x, n.a)), n.c), a=(6, 3), c=(2, 6)
    ),
    "twice": lambda: Net(lambda n, x: torch.tanh(torch.tanh(x @ n.a) @ n.b) @ n.b @ n.c, a=(3, 6), b=(6, 6), c=(6, 2)),
    "both-ways": lambda: Net(lambda n, x: torch.tanh(x @ n.a.T) @ n.a, a=(6, 3)),
    "never-read": lambda: Net(lambda n, x: torch.tanh(x @ n.a).pow(2).sum(1, keepdim=True), a=(3, 6)),
    "factors": lambda: Net(lambda n, x: ((x @ n.a) * (x @ n.b)).sum(1, keepdim=True), a=(3, 6), b=(3, 6)),
}
NAMES = (*nets.NETS, *BARE, "tied")


def setting(name: str, seed: int) -> tuple[nn.Module, PermutationSpec, list[Tensor]]:
    """A random net in float64, its spec and three batches."""
    generator = torch.Generator().manual_seed(seed)
    if name == "tied":
        batches = [torch.randint(7, (32, 3), generator=generator) for _ in range(3)]
        model = random_model(nets.Tied(), seed)
    else:
        shape = nets.NETS[name].shape if name in nets.NETS else nets.VECTOR
        size = (shape[0] if name in VIEWED else 32, *shape[1:])
        batches = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(3)]
        model = random_model(nets.NETS[name].make() if name in nets.NETS else BARE[name](), seed)
    return model, PermutationSpec.trace(model, batches[0][: 4 if name in VIEWED else 2], check=False), batches


def planted(model: nn.Module, spec: PermutationSpec, seed: int) -> tuple[State, Permutation, State]:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    permutation = Permutation.random(spec, torch.Generator().manual_seed(seed))
    return state, permutation, permutation.apply(state)


def from_sums(
    model: nn.Module, spec: PermutationSpec, reference: State, own: State, batches: list[Tensor]
) -> Permutation:
    """What the server finds from the sums of two clients."""
    places = unit_places(model, reference, batches[0], spec)
    if not places:
        return Permutation.identity(spec)
    statistic = ActivationCorrelation(places, reference)
    sums = collect_sums(statistic, model, own, batches)
    statistic.validate(sums)
    return match_relations(spec, statistic.finish(sums))


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_data_in_hand_and_sums_from_clients_find_the_same_permutation(name: str, correlation: bool) -> None:
    model, spec, batches = setting(name, 0)
    reference, permutation, candidate = planted(model, spec, 1)
    in_hand = ActivationMatching(model, batches, correlation)(spec, reference, candidate).permutation
    asked = from_sums(model, spec, reference, candidate, batches)
    if name not in ALIKE:
        assert in_hand == asked == permutation.inverse()
    places = unit_places(model, reference, batches[0], spec)
    expected = unit_activations(model, reference, batches[1], places)
    for found in (in_hand, asked):
        actual = unit_activations(model, found.apply(candidate), batches[1], places)
        assert actual.keys() == expected.keys()
        for group in expected:
            torch.testing.assert_close(actual[group], expected[group])


@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_seen_and_its_units_move_with_it(name: str) -> None:
    model, spec, batches = setting(name, 2)
    state, permutation, moved = planted(model, spec, 3)
    places = unit_places(model, state, batches[0], spec)
    groups = {key.rpartition("@")[0] for key in places}
    parents = {group.name for name in groups for group in spec.ancestors(name)}
    assert groups | parents == set(spec.groups)
    assert not groups & parents
    before, after = (unit_activations(model, each, batches[0], places) for each in (state, moved))
    assert before.keys() == after.keys() == groups
    for group in groups:
        order = torch.arange(len(before[group])).reshape(spec.shape(group))
        for level, member in enumerate([*reversed(list(spec.ancestors(group))), spec.groups[group]]):
            index = permutation[member.name]
            index = index.reshape(*index.shape, *[1] * (order.dim() - index.dim())).expand_as(order)
            order = torch.take_along_dim(order, index, level)
        torch.testing.assert_close(after[group], before[group][order.flatten()])


def test_units_that_never_vary_are_paired_by_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    state = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}
    state["0.bias"] = torch.tensor([-2.0, -1.0, 1.0, 2.0]).double()
    batch = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spec = PermutationSpec.trace(model, batch[:2])
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    assert from_sums(model, spec, state, permutation.apply(state), [batch]) == permutation.inverse()


def test_a_group_that_a_client_never_sees_stays_and_others_do_not() -> None:
    model, spec, batches = setting("projection", 0)
    reference, permutation, candidate = planted(model, spec, 1)
    statistic = ActivationCorrelation(unit_places(model, reference, batches[0], spec), reference)
    sums = collect_sums(statistic, model, candidate, batches)
    unseen = next(iter(spec.groups))
    some = {key: tensor for key, tensor in sums.items() if not key.startswith(f"{unseen}.c")}
    with pytest.raises(CalibrationError, match="is missing"):
        statistic.validate(some)
    some = {key: tensor for key, tensor in sums.items() if key.rpartition(".")[0] != unseen}
    statistic.validate(some)
    found, inverse = match_relations(spec, statistic.finish(some)), permutation.inverse()
    for group in spec.groups:
        index = torch.arange(spec.groups[group].size or 0) if group == unseen else inverse[group]
        assert torch.equal(found[group], index)
    with pytest.raises(CalibrationError, match="no group was seen"):
        statistic.validate({"examples": sums["examples"]})


def test_a_group_that_no_product_touches_is_an_error() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :1] * self.a * self.b).sum(1, keepdim=True)

    model = Scales()
    spec = PermutationSpec.from_axes({"a": ("p",), "b": ("p",)}, like=model.state_dict())
    with pytest.raises(MatchingError, match="reads or writes"):
        ActivationMatching(model, [torch.ones(3, 1)])(spec, model.state_dict(), model.state_dict())
