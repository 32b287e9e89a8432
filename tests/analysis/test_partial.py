"""Permutations layer by layer."""

import pytest
import torch

from fedrebasin import Permutation, SpecError
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
