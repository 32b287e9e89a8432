"""Masks: sizes, rewinding, and transport through a permutation."""

import pytest
import torch
from torch.nn.utils import prune

from fedrebasin import MergeError, Permutation
from fedrebasin.analysis import (
    apply_mask,
    dense_mask,
    iterative_pruning,
    mask_agreement,
    one_shot_pruning,
    prune_smallest,
    sparsity_of,
    transport_mask,
)

from .nets import make_mlp, make_spec, random_state


@pytest.fixture
def state():
    return random_state(make_mlp(), 0)


def test_the_smallest_weights_of_the_whole_net_go_first(state):
    mask = prune_smallest(state, dense_mask(state), 0.5)
    assert sparsity_of(mask) == pytest.approx(0.5, abs=0.01)
    kept = torch.cat([state[key][mask[key] == 1].abs() for key in mask])
    gone = torch.cat([state[key][mask[key] == 0].abs() for key in mask])
    assert gone.max() <= kept.min()
    again = prune_smallest(state, mask, 0.5)
    assert all(bool((again[key] <= mask[key]).all()) for key in mask)


@pytest.mark.parametrize("rewinding", ["weights", "learning-rate"])
def test_every_level_is_sparser_and_starts_from_the_right_weights(state, rewinding):
    starts = []

    def train(start, mask):
        starts.append(start)
        return apply_mask({key: tensor * 1.5 for key, tensor in start.items()}, mask)

    levels = iterative_pruning(train, state, 3, 0.2, rewinding=rewinding)
    assert [level.sparsity for level in levels] == pytest.approx([1 - 0.8**n for n in range(4)], abs=0.02)
    kept = levels[2].mask["0.weight"] == 1
    factor = 1.0 if rewinding == "weights" else 1.5**2
    torch.testing.assert_close(starts[2]["0.weight"][kept], factor * state["0.weight"][kept])
    for level in levels[1:]:
        assert bool((level.state["0.weight"] == 0).any())


def test_a_mask_travels_with_its_units(state):
    spec = make_spec(state)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(2))
    mask = prune_smallest(state, dense_mask(state), 0.6)
    moved = transport_mask(permutation, mask, state)
    left = apply_mask(permutation.apply(state), moved)
    right = permutation.apply(apply_mask(state, mask))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert sparsity_of(moved) == pytest.approx(sparsity_of(mask))
    assert mask_agreement(mask, mask) == 1
    assert mask_agreement(mask, moved) < 1


def test_one_shot_prunes_at_once(state):
    found = one_shot_pruning(lambda start, mask: start, state, state, 0.7)
    assert found.sparsity == pytest.approx(0.7, abs=0.01)
    assert float((found.state["0.weight"] == 0).double().mean()) > 0.3


def test_errors(state):
    with pytest.raises(MergeError, match="share 1"):
        prune_smallest(state, dense_mask(state), 1.0)
    with pytest.raises(MergeError, match="does not fit"):
        apply_mask(state, {"nowhere": torch.ones(2)})
    with pytest.raises(MergeError, match="neither 'weights'"):
        iterative_pruning(lambda start, mask: start, state, 1, rewinding="sideways")


@pytest.mark.parametrize("levels", [1, 3])
def test_masks_are_those_of_torchs_global_pruning(state, levels):
    model = make_mlp().double()
    model.load_state_dict(state)
    layers = [module for module in model if isinstance(module, torch.nn.Linear)]
    mask = dense_mask(state)
    for _ in range(levels):
        mask = prune_smallest(state, mask, 0.3)
        prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.3)
    for key, layer in zip(("0.weight", "2.weight", "4.weight"), layers, strict=True):
        assert torch.equal(mask[key], layer.weight_mask)


def test_one_shot_is_the_first_level_of_iterative_pruning_and_not_the_second(state):
    def train(start, mask):
        generator = torch.Generator().manual_seed(round(1000 * sparsity_of(mask)))
        steps = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in start.items()}
        return apply_mask({key: tensor + steps[key] for key, tensor in start.items()}, mask)

    dense, first, second = iterative_pruning(train, state, 2, 0.5)
    for level, same in ((first, True), (second, False)):
        found = one_shot_pruning(train, state, dense.state, level.sparsity)
        assert found.sparsity == pytest.approx(level.sparsity, abs=0.01)
        assert (mask_agreement(found.mask, level.mask) == 1) == same
    assert all(bool((second.mask[key] <= first.mask[key]).all()) for key in first.mask)


def test_agreement_by_hand_and_masks_of_nothing(state):
    one, other = {"w": torch.tensor([1.0, 1.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 1.0, 1.0, 0.0])}
    assert mask_agreement(one, other) == pytest.approx(1 / 3)
    assert sparsity_of(one) == 0.5
    assert sparsity_of({}) == 0
    with pytest.raises(MergeError, match="nothing to prune"):
        prune_smallest(state, {}, 0.5)
    with pytest.raises(MergeError, match="differ in the keys v, w"):
        mask_agreement(one, {"v": one["w"]})
