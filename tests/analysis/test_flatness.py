"""Random steps and random permutations."""

import pytest
import torch

from fedrebasin import loss_barrier
from fedrebasin.analysis import flatness, random_permutation_barriers, step_of_equal_length

from .nets import make_batches, make_mlp, make_spec, random_state


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_every_tensor_moves_exactly_as_far_as_the_way_to_the_other_model(lam):
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    moved = step_of_equal_length(a, b, lam, torch.Generator().manual_seed(0))
    for key in a:
        assert float((moved[key] - a[key]).norm()) == pytest.approx(lam * float((b[key] - a[key]).norm()))


def test_a_step_of_no_length_keeps_the_score():
    model = make_mlp()
    a = random_state(model, 0)
    found = flatness(model, a, a, make_batches(), 0.5, directions=2, generator=torch.Generator().manual_seed(0))
    assert found.losses[0] == pytest.approx(found.losses[1])


def test_random_permutations_leave_the_ends_where_they_are():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = make_batches()
    plain = loss_barrier(model, a, b, batches, 3)
    generator = torch.Generator().manual_seed(0)
    found = random_permutation_barriers(model, make_spec(a), a, b, batches, 2, generator=generator)
    for barrier in found:
        assert barrier.losses[0] == pytest.approx(plain.losses[0])
        assert barrier.losses[-1] == pytest.approx(plain.losses[-1])
    assert found[0].losses[1] != pytest.approx(found[1].losses[1])
