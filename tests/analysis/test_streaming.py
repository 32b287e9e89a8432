"""However long the data are, no measure keeps more than a batch or two of them, nor of what was computed on them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedrebasin.analysis import (
    activation_spectra,
    active_overlap,
    commutativity,
    commutativity_objective,
    compare_matchers,
    feature_connectivity,
    flatness,
    instability,
    lemma_1,
    loss_barrier,
    loss_plane,
    partial_barriers,
    random_permutation_barriers,
    reciprocal_orthogonality,
    simultaneous_connectivity,
    stitching,
    strong_connectivity,
    unit_activity,
    weak_additivity,
    weak_connectivity,
)
from fedrebasin.errors import CalibrationError
from fedrebasin.matching import WeightMatching
from fedrebasin.spec.permutation import Permutation

from .nets import make_mlp, make_spec, random_state

MODEL = make_mlp()
A, B, C = (random_state(MODEL, seed) for seed in range(3))
SPEC = make_spec(A)
SHUFFLE = Permutation.random(SPEC, torch.Generator().manual_seed(0))


def generator():
    return torch.Generator().manual_seed(0)


READ_ONCE = {
    "LLFC": lambda data: feature_connectivity(MODEL, A, B, data, [0.3, 0.5]),
    "LEWC": lambda data: feature_connectivity(MODEL, A, B, data, [0.3, 0.5], "exponential"),
    "commutativity": lambda data: commutativity(MODEL, A, B, data),
    "objective": lambda data: commutativity_objective(MODEL, A, B, data, SHUFFLE),
    "orthogonality": lambda data: reciprocal_orthogonality(MODEL, A, B, data),
    "additivity": lambda data: weak_additivity(MODEL, A, B, data),
    "activity": lambda data: unit_activity(MODEL, A, data),
    "overlap": lambda data: active_overlap(MODEL, A, B, data),
    "stitching": lambda data: stitching(MODEL, A, B, data),
    "spectra": lambda data: activation_spectra(MODEL, A, data),
}
READ_MORE_THAN_ONCE = {
    "barrier": lambda data: loss_barrier(MODEL, A, B, data, 2),
    "recalibrated": lambda data: loss_barrier(MODEL, A, B, data, 2, recalibrate=data),
    "plane": lambda data: loss_plane(MODEL, A, B, C, data, 2),
    "lemma 1": lambda data: lemma_1(MODEL, A, B, data),
    "matchers": lambda data: compare_matchers(MODEL, SPEC, A, B, data, {"weights": WeightMatching()}),
    "random permutations": lambda data: random_permutation_barriers(
        MODEL, SPEC, A, B, data, 1, 2, generator=generator()
    ),
    "partial": lambda data: partial_barriers(MODEL, SHUFFLE, A, B, data, "put-in", 2),
    "weak": lambda data: weak_connectivity(MODEL, SPEC, [A, B], data, points=2),
    "strong": lambda data: strong_connectivity(MODEL, SPEC, [A, B, C], data, points=2),
    "simultaneous": lambda data: simultaneous_connectivity(MODEL, [A], [B], SHUFFLE, data, 2),
    "instability": lambda data: instability(MODEL, [A], lambda state, position, seed: state, data, points=2),
}
FITTED = {"flatness": lambda data: flatness(MODEL, A, B, data, directions=1, generator=generator())}
EVERY = READ_ONCE | READ_MORE_THAN_ONCE | FITTED


class Endless:
    """Batches made when they are asked for; notes how many live, and how many bytes of tensors do, as it goes on."""

    def __init__(self, count):
        self.count = count
        self.most, self.held = 0, []

    def __iter__(self):
        made = []
        random = torch.Generator().manual_seed(1)
        for number in range(self.count):
            inputs = torch.randn(50, 5, generator=random, dtype=torch.float64)
            made.append(weakref.ref(inputs))
            self.most = max(self.most, sum(ref() is not None for ref in made))
            if len(self.held) < 2 and number in (2, self.count - 1):
                self.held.append(bytes_alive())
            yield inputs, torch.randint(3, (50,), generator=random)
            del inputs


def bytes_alive():
    return sum(each.numel() * each.element_size() for each in gc.get_objects() if type(each) is torch.Tensor)


@pytest.mark.parametrize("name", READ_ONCE | READ_MORE_THAN_ONCE)
def test_memory_does_not_grow_with_the_data(name):
    data = Endless(8)
    assert EVERY[name](data)
    assert data.most <= 2
    early, late = data.held
    assert late <= early + 500  # a batch of hidden features alone is 3200 bytes


@pytest.mark.parametrize("name", EVERY)
def test_a_data_loader_gives_what_a_list_gives_and_nothing_is_touched(name):
    random = torch.Generator().manual_seed(2)
    whole = torch.randn(20, 5, generator=random, dtype=torch.float64), torch.randint(3, (20,), generator=random)
    state, grads = torch.get_rng_state(), [parameter.requires_grad for parameter in MODEL.parameters()]
    MODEL.train()
    own = {key: tensor.clone() for key, tensor in (MODEL.state_dict() | A).items()}
    from_list = EVERY[name](list(zip(whole[0].split(8), whole[1].split(8), strict=True)))
    assert torch.equal(torch.get_rng_state(), state)
    # a loader draws a seed each time that it starts, which is its own
    loader = DataLoader(TensorDataset(*whole), batch_size=8, generator=generator())
    from_loader = EVERY[name](loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(from_list) == repr(from_loader)
    assert all(torch.equal(own[key], tensor) for key, tensor in (MODEL.state_dict() | A).items())
    assert [parameter.requires_grad for parameter in MODEL.parameters()] == grads
    assert all(parameter.grad is None for parameter in MODEL.parameters())
    assert all(module.training for module in MODEL.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in MODEL.modules())


@pytest.mark.parametrize("name", READ_MORE_THAN_ONCE | FITTED)
def test_an_iterator_is_refused_where_data_are_read_again(name):
    with pytest.raises(CalibrationError, match="more than once"):
        EVERY[name](iter([(torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))]))
