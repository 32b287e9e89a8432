"""A matcher, an aligner or a calibrator that raises about one reply, or about all: the round goes on without them."""

import logging
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedrebasin import AlignTo, Identity, MatchingError, MergeMany, PermutationSpec, WeightMatching
from fedrebasin.strategies import Aligned, Calibrated, FedMergeMany, FedRebasin
from tests.strategies.helpers import (
    ALIGNABLE,
    AXES,
    CLIENTS,
    COMMON,
    STRATEGIES,
    make_reply,
    make_state,
    run_round,
)

SPEC = PermutationSpec.from_axes(AXES)
START = make_state(seed=99)
ERRORS = [MatchingError("planted"), RuntimeError("planted"), IndexError(), MemoryError(), ZeroDivisionError("planted")]


def is_marked(state):
    return bool((state["3.bias"][1:] == 0).all())


@dataclass(frozen=True)
class Fragile:
    """Weight matching that raises about marked models, or about all."""

    error: Exception
    always: bool = False
    matcher: WeightMatching = field(default_factory=WeightMatching)

    def __call__(self, spec, reference, candidate):
        if self.always or is_marked(reference) or is_marked(candidate):
            raise self.error
        return self.matcher(spec, reference=reference, candidate=candidate)


@dataclass(frozen=True)
class FragileAligner:
    """An aligner that takes all models at once and says nothing of which it cannot align."""

    error: Exception
    always: bool = False

    def __call__(self, spec, states, weights=None):
        states = list(states)
        if self.always or any(is_marked(state) for state in states):
            raise self.error
        return MergeMany()(spec, states, weights)


class Short:
    """An aligner that forgets a model."""

    def __call__(self, spec, states, weights=None):
        return MergeMany()(spec, list(states)[1:], list(weights)[1:])


@dataclass(frozen=True)
class FragileCalibrator:
    error: Exception | None
    rewrites_weights = False

    def __call__(self, round_):
        if self.error is not None:
            raise self.error
        return Calibrated({key: tensor / 0 for key, tensor in round_.state.items()})


def replies(marked=(), without=()):
    states = {at: make_state(seed=at) for at in range(CLIENTS) if at not in without}
    for at in marked:
        states[at]["3.bias"] = torch.tensor([15.0 + at / 10, 0, 0])  # longest: the last resort takes it for the culprit
    return [make_reply(state, node_id=at + 1, num_examples=10 + at) for at, state in states.items()]


def aligners(error, always=False):
    return {
        "FedRebasin": lambda inner, **options: FedRebasin(inner, spec=SPEC, matcher=Fragile(error, always), **options),
        "AlignTo": lambda inner, **options: Aligned(
            inner, spec=SPEC, aligner=AlignTo(Fragile(error, always), reference=make_state(seed=50)), **options
        ),
        "aligner": lambda inner, **options: Aligned(inner, spec=SPEC, aligner=FragileAligner(error, always), **options),
    }


def close(one, other):
    return all(np.allclose(one[key].numpy(), other[key].numpy(), rtol=1e-4, atol=1e-5) for key in START)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("marked", [(7,), (0,), (2, 5)])
@pytest.mark.parametrize("which", ["AlignTo", "aligner"])
def test_a_reply_that_cannot_be_aligned_is_set_aside_with_its_reason(which, marked, error, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    make = aligners(error)[which]
    arrays, metrics = run_round(make(FedAvg(**COMMON)), START, replies(marked))
    expected, _ = run_round(make(FedAvg(**COMMON)), START, replies(without=marked))
    assert metrics["rebasin-replies-set-aside"] == len(marked)
    assert close(arrays, expected)
    for at in marked:
        reason = "planted" if isinstance(error, MatchingError) else type(error).__name__
        assert f"set aside the reply of node {at + 1}: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("which", "inner"),  # an aligner that is only called is refused around differential privacy
    [case for case in product(("AlignTo", "aligner"), ALIGNABLE) if case != ("aligner", "DP-server")],
)
def test_every_inner_strategy_gets_the_others(which, inner):
    make = aligners(RuntimeError("planted"))[which]
    arrays, metrics = run_round(make(STRATEGIES[inner]()), START, replies([3]))
    expected, _ = run_round(make(STRATEGIES[inner]()), START, replies(without=[3]))
    assert metrics["rebasin-replies-set-aside"] == 1
    assert close(arrays, expected)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("which", ["AlignTo", "FedRebasin"])
def test_while_streaming_too(which, workers):
    strategy = aligners(RuntimeError("planted"))[which](FedAvg(**COMMON), streaming=True, workers=workers)
    arrays, metrics = run_round(strategy, START, iter(replies([4])))
    expected, _ = run_round(strategy, START, iter(replies(without=[4])))
    assert metrics["rebasin-replies-set-aside"] == 1
    assert which == "FedRebasin" or close(arrays, expected)  # whose reference is chosen with the marked one


@pytest.mark.parametrize(
    ("which", "inner", "streaming"),  # and so it is where it would have to stream
    [
        case
        for case in product(
            ("FedRebasin", "AlignTo", "aligner"), ("FedAvg", "FedAvgM", "FedMedian", "Krum"), (False, True)
        )
        if case not in (("aligner", "FedAvg", True), ("aligner", "FedAvgM", True))
    ],
)
def test_where_no_reply_can_be_aligned_the_last_model_is_kept(which, inner, streaming, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    make = aligners(RuntimeError("planted"), always=True)[which]
    strategy = make(STRATEGIES[inner](), streaming=streaming)
    arrays, metrics = run_round(strategy, START, replies())
    assert arrays is None
    assert metrics["rebasin-replies-set-aside"] == CLIENTS
    assert caplog.text.count("the global model stays") == 1


def test_an_aligner_that_forgets_a_model_is_no_aligner():
    arrays, metrics = run_round(Aligned(FedMedian(**COMMON), spec=SPEC, aligner=Short()), START, replies())
    assert arrays is None
    assert metrics["rebasin-replies-set-aside"] == CLIENTS


@pytest.mark.parametrize("error", [None, *ERRORS], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "make", [lambda **o: Aligned(aligner=Identity(), **o), lambda **o: FedMergeMany(spec=SPEC, **o)]
)
def test_a_calibrator_that_raises_or_gives_no_numbers_leaves_the_model(make, error):
    plain, _ = run_round(make(strategy=FedAvg(**COMMON)), START, replies())
    failing = make(strategy=FedAvg(**COMMON), calibrators=[FragileCalibrator(error)])
    arrays, metrics = run_round(failing, START, replies())
    assert metrics["rebasin-fragile-calibrator-failed"] == 1
    assert all(np.array_equal(arrays[key].numpy(), plain[key].numpy()) for key in START)
