"""Permutations layer by layer."""

import pytest
import torch

from fedrebasin import Permutation, SpecError, loss_barrier
from fedrebasin.analysis import fixed_points, partial_barriers, partial_permutation, partial_permutations

from .nets import labelled_by, make_batches, make_mlp, make_spec, random_state


@pytest.fixture
def permutation():
    return Permutation.random(make_spec(random_state(make_mlp(depth=3), 0)), torch.Generator().manual_seed(5))


def test_fixed_points_of_itself_are_all_units(permutation):
    found = fixed_points(permutation, permutation)
    assert found.total == (24, 24)
    assert found.share == 1
    assert fixed_points(permutation).total[0] == sum(fixed_points(permutation).by_group[g][0] for g in permutation)


def test_every_order_begins_and_ends_where_it_should(permutation):
    up, down = (partial_permutations(permutation, order) for order in ("bottom-up", "top-down"))
    for steps in (up, down):
        assert [label for label, _ in steps] == ["0", "1", "2", "3"]
        assert steps[0][1].is_identity
        assert steps[-1][1] == permutation
    assert up[1][1] == partial_permutation(permutation, ["P0"])
    assert down[1][1] == partial_permutation(permutation, ["P2"])
    for (label, one), (_, rest) in zip(
        partial_permutations(permutation, "put-in"), partial_permutations(permutation, "leave-out"), strict=True
    ):
        assert one == partial_permutation(permutation, [label])
        assert one.compose(rest) == permutation


def test_a_permuted_copy_is_reached_at_the_last_step(permutation):
    model = make_mlp(depth=3)
    a = random_state(model, 0)
    b = permutation.inverse().apply(a)
    barriers = partial_barriers(model, permutation, a, b, labelled_by(model, a, make_batches()))
    assert barriers["3"].value == pytest.approx(0, abs=1e-9)
    assert barriers["0"].value > 1e-3


def test_unknown_names(permutation):
    with pytest.raises(SpecError, match="choose bottom-up"):
        partial_permutations(permutation, "sideways")
    with pytest.raises(SpecError, match="no group nowhere"):
        partial_permutation(permutation, ["nowhere"])


def test_the_first_and_the_last_layers_compose_to_the_whole(permutation):
    up, down = (partial_permutations(permutation, order) for order in ("bottom-up", "top-down"))
    for count in range(4):
        assert up[count][1].compose(down[3 - count][1]) == permutation
        assert down[3 - count][1].compose(up[count][1]) == permutation
    whole = Permutation.identity(permutation.spec)
    for _, one in partial_permutations(permutation, "put-in"):
        whole = whole.compose(one)
    assert whole == permutation


def test_fixed_points_by_hand():
    spec = make_spec(random_state(make_mlp(4), 0))
    first = Permutation(spec, {"P0": torch.tensor([0, 2, 1, 3]), "P1": torch.tensor([3, 2, 1, 0])})
    second = Permutation(spec, {"P0": torch.tensor([0, 1, 2, 3]), "P1": torch.tensor([3, 1, 2, 0])})
    found = fixed_points(first, second)
    assert found.by_group == {"P0": (2, 4), "P1": (2, 4)}
    assert (found.total, found.share) == ((4, 8), 0.5)
    assert fixed_points(first).by_group == {"P0": (2, 4), "P1": (0, 4)}


def test_each_partial_barrier_is_that_of_the_partly_permuted_model(permutation):
    model = make_mlp(depth=3)
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches()
    found = partial_barriers(model, permutation, a, b, batches, "leave-out", 3)
    assert list(found) == ["P0", "P1", "P2"]
    for left_out, barrier in found.items():
        kept = partial_permutation(permutation, [name for name in found if name != left_out])
        assert barrier == loss_barrier(model, a, kept.apply(b), batches, 3, "simultaneous")
