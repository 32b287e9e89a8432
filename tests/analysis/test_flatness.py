"""Random steps and random permutations."""

import pytest
import torch

from fedrebasin import MergeError, Permutation, evaluate, fit_temperature, loss_barrier
from fedrebasin.analysis import flatness, random_permutation_barriers, step_of_equal_length
from fedrebasin.sums import logits_of

from .nets import labelled_by, make_batches, make_cnn, make_mlp, make_spec, random_state


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


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_a_step_of_the_whole_model_is_as_long_as_the_way_of_all_tensors_together(lam):
    model = make_cnn()
    a, b = random_state(model, 0), random_state(model, 1)
    moved = step_of_equal_length(a, b, lam, torch.Generator().manual_seed(0), "model")
    weights = [key for key in a if a[key].is_floating_point() and "running" not in key]
    lengths = [sum(float((end[key] - a[key]).square().sum()) for key in weights) ** 0.5 for end in (moved, b)]
    assert lengths[0] == pytest.approx(lam * lengths[1])
    assert all(torch.equal(moved[key], a[key]) for key in a if key not in weights)
    with pytest.raises(MergeError, match="neither 'tensor' nor 'model'"):
        step_of_equal_length(a, b, lam, torch.Generator(), "layer")


def test_the_losses_of_random_directions_by_hand():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    batches = labelled_by(model, b, make_batches())
    found = flatness(model, a, b, batches, 0.5, directions=2, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    for loss, accuracy in zip(found.losses, found.accuracies, strict=True):
        state = step_of_equal_length(a, b, 0.5, generator)
        fitted = fit_temperature(*logits_of(model, state, batches))
        assert loss == pytest.approx(fitted.nll_after)
        assert accuracy == evaluate(model, state, batches).accuracy


def test_barriers_to_random_permutations_by_hand():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    batches, spec = make_batches(), make_spec(a)
    found = random_permutation_barriers(
        model, spec, a, b, batches, 2, calibrate=batches, generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    for barrier in found:
        shuffled = Permutation.random(spec, generator).apply(b)
        assert barrier == loss_barrier(model, a, shuffled, batches, 3, calibrate=batches)
