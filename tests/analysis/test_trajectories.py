"""Connectivity of sets and sequences, on permuted copies of one model."""

import pytest
import torch

from fedrebasin import MergeError, Permutation
from fedrebasin.analysis import instability, simultaneous_connectivity, strong_connectivity, weak_connectivity

from .nets import labelled_by, make_batches, make_mlp, make_spec, random_state


@pytest.fixture
def setting():
    model = make_mlp()
    a = random_state(model, 0)
    spec = make_spec(a)
    generator = torch.Generator().manual_seed(0)
    copies = [Permutation.random(spec, generator).apply(a) for _ in range(3)]
    return model, spec, copies


def test_permuted_copies_are_weakly_and_strongly_connected(setting):
    model, spec, copies = setting
    batches = make_batches()
    weak = weak_connectivity(model, spec, copies, batches, points=5)
    assert weak.connected(1e-9)
    strong = strong_connectivity(model, spec, copies, batches, points=5)
    assert strong.connected(1e-9)
    assert set(strong.direct.values) == {(0, 1), (0, 2)}
    assert set(strong.through_third.values) == {(1, 2)}


def test_one_permutation_carries_a_whole_sequence(setting):
    model, spec, _ = setting
    first = [random_state(model, seed) for seed in range(3)]
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    second = [permutation.inverse().apply(state) for state in first]
    batches = labelled_by(model, first[0], make_batches())
    assert simultaneous_connectivity(model, first, second, permutation, batches, 5) == pytest.approx(
        [0, 0, 0], abs=1e-9
    )
    identity = Permutation.identity(permutation.spec)
    assert simultaneous_connectivity(model, first, second, identity, batches, 5)[0] > 1e-3


def test_instability_is_zero_for_equal_seeds_and_the_children_start_from_each_checkpoint():
    model = make_mlp()
    checkpoints = [random_state(model, seed) for seed in range(2)]
    seen = []

    def train(state, position, seed):
        seen.append((position, seed))
        generator = torch.Generator().manual_seed(seed)
        return {key: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for key, t in state.items()}

    assert instability(model, checkpoints, train, make_batches(), (3, 3), 5) == pytest.approx((0, 0), abs=1e-9)
    assert seen == [(0, 3), (0, 3), (1, 3), (1, 3)]


def test_too_few_models(setting):
    model, spec, copies = setting
    with pytest.raises(MergeError, match="at least 2"):
        weak_connectivity(model, spec, copies[:1], [])
    with pytest.raises(MergeError, match="at least 3"):
        strong_connectivity(model, spec, copies[:2], [])
    with pytest.raises(MergeError, match="of one length"):
        simultaneous_connectivity(model, copies, copies[:2], Permutation.identity(spec), [])
