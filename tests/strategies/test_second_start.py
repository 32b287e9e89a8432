"""What lasts for a run ends with it: a strategy that was used gives what a new one gives."""

import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import AlignTo, Identity, MergeMany, Permutation, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, AlignmentProbe, Calibrated, Frames
from tests.strategies.helpers import AXES, CLIENTS, COMMON, STRATEGIES, make_state

SPEC = PermutationSpec.from_axes(AXES)
KEEP_STATE = ("FedAvgM", "FedAdam", "FedAdagrad", "FedYogi")


def clients(run, width=16):
    """Clients that hold one model, each in an order of units of its own, which is another one in every run."""
    app = ClientApp()
    base = make_state(5, width=width)

    @app.train()
    def train(message, context):
        generator = torch.Generator().manual_seed(100 * run + context.node_config["partition-id"])
        state = message.content["arrays"].to_torch_state_dict()
        if message.content["config"]["server-round"] == 1:
            state = Permutation.random(SPEC.bind(base), generator).apply(base)
        near = {
            key: t + 0.01 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
            for key, t in state.items()
        }
        metrics = MetricRecord({"num-examples": 10, "train-loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(near), "metrics": metrics}), reply_to=message)

    return app


def go(strategy, run, width=16, rounds=2):
    random.seed(run)
    start = ArrayRecord(make_state(9, width=width))
    result = strategy.start(InlineGrid(clients(run, width), CLIENTS), start, num_rounds=rounds)
    seconds = [metrics.pop("rebasin-seconds", None) for metrics in result.train_metrics_clientapp.values()]
    assert len(seconds) == rounds
    return result


def assert_same(a, b):
    for key in a.arrays:
        assert torch.equal(*(torch.from_numpy(result.arrays[key].numpy()) for result in (a, b))), key
    assert a.train_metrics_clientapp == b.train_metrics_clientapp


class Found:
    """A calibrator that finds a beta in its first round and never again."""

    rewrites_weights = False

    def __init__(self):
        self.found = False

    def __call__(self, round_):
        first, self.found = not self.found, True
        return Calibrated(round_.state, {"beta": 2.0} if first else {})


KINDS = {
    "server frame": {},
    "client frame": {"frame": "client"},
    "matched again": {"frame": "matched again"},
    "streaming": {"streaming": True},
    "client frame, streaming": {"frame": "client", "streaming": True},
    "no reference": {"aligner": MergeMany()},
    "idle": {"aligner": Identity()},
}


def make(inner, options):
    frame = Frames(rematch_every=2) if options.get("frame") == "matched again" else options.get("frame", "server")
    return Aligned(STRATEGIES[inner](), spec=SPEC, probes=(AlignmentProbe(),), **{**options, "frame": frame})


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_start_gives_what_a_new_strategy_gives(kind):
    used = make("FedAvg", KINDS[kind])
    go(used, run=0)
    assert_same(go(used, run=1), go(make("FedAvg", KINDS[kind]), run=1))


@pytest.mark.parametrize("inner", [name for name in STRATEGIES if name != "DP-client"])
def test_whatever_is_inside(inner):
    used = make(inner, {"frame": "client"})
    go(used, run=0)
    assert_same(go(used, run=1), go(make(inner, {"frame": "client"}), run=1))


@pytest.mark.parametrize("inner", KEEP_STATE)
def test_a_third_start_begins_anew_as_well(inner):
    """What the second one was given was no part of what is kept for later ones."""
    used = make(inner, {})
    for run in (0, 1):
        go(used, run)
    assert_same(go(used, run=2), go(make(inner, {}), run=2))


class Late(FedAvg):
    """It keeps an array that it does not have before its first round, in place, and a number that grows."""

    def __init__(self):
        super().__init__(**COMMON)
        self.rounds, self.name, self.sums = 0, "late", [np.zeros(1)]

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if not hasattr(self, "late"):
            self.late = {"w": np.zeros(2)}
        self.rounds += 1
        self.late["w"] += 1
        self.sums[0] += 1
        return arrays, metrics


def test_numbers_and_arrays_of_any_strategy_begin_anew():
    inner = Late()
    inner.rounds = 5  # before the first start: its user's
    strategy = Aligned(inner, spec=SPEC)
    for run in (0, 1):
        go(strategy, run)
        assert (inner.rounds, inner.late["w"].tolist(), inner.sums[0].tolist()) == (7, [2, 2], [2.0])
        inner.name = "kept"
    assert inner.name == "kept"


@pytest.mark.parametrize("inner", KEEP_STATE)
def test_it_keeps_its_memory_if_it_is_to(inner):
    """Flower's strategies keep momenta over a second start; an alignment that does nothing changes nothing of that."""
    bare, wrapped = STRATEGIES[inner](), Aligned(STRATEGIES[inner](), aligner=Identity(), keep_memory=True)
    first, second = ([go(strategy, run).arrays for run in (0, 1)] for strategy in (bare, wrapped))
    for expected, found in zip(first, second, strict=True):
        for key in make_state(0, integers=False):
            both = (torch.from_numpy(arrays[key].numpy()).float() for arrays in (expected, found))
            assert torch.allclose(*both, rtol=1e-3, atol=1e-5), key


def test_a_second_run_may_be_of_a_model_of_another_size():
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC)
    go(strategy, run=0, width=16)
    assert strategy.spec.shape("P") == (16,)
    go(strategy, run=1, width=10)
    assert strategy.spec.shape("P") == strategy.alignment.spec.shape("P") == (10,)


def test_results_stay_to_be_looked_at_until_the_next_run():
    frames, calibrator = Frames(), Found()
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, aligner=AlignTo(), frame=frames, calibrators=[calibrator])
    assert strategy.beta is None
    go(strategy, run=0)
    assert strategy.beta == 2.0
    first = dict(frames.by_node)
    assert len(first) == CLIENTS
    go(strategy, run=1)
    assert strategy.beta is None
    assert all(frames.by_node[node] != first[node] for node in first)


def test_permutations_that_were_given_are_there_in_every_run():
    spec = SPEC.bind(make_state(0, width=16))
    given = {10**6: Permutation.random(spec, torch.Generator().manual_seed(1))}  # of a node that never answers
    frames = Frames(by_node=dict(given))
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame=frames)
    for run in (0, 1):
        go(strategy, run)
        assert frames.by_node[10**6] is given[10**6]
        assert len(frames.by_node) == 1 + CLIENTS


def test_settings_cannot_be_changed():
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC)
    for name in ("strategy", "aligner", "calibrators", "probes", "streaming", "spec", "beta", "alignment"):
        with pytest.raises(AttributeError):
            setattr(strategy, name, None)
    strategy.aggregate_train = strategy.aggregate_train  # methods may be watched


def test_after_a_run_that_failed_rounds_are_counted_from_the_first(tmp_path):
    options = {"spec": SPEC, "checkpoint": tmp_path}
    go(Aligned(STRATEGIES["FedAvg"](), **options), run=0, rounds=1)

    class Broken(InlineGrid):
        def send_and_receive(self, messages, *, timeout=None):
            raise ConnectionError("gone")

    strategy = Aligned(STRATEGIES["FedAvg"](), **options, resume=True)
    with pytest.raises(ConnectionError):
        strategy.start(Broken(clients(0), CLIENTS), ArrayRecord(make_state(9, width=16)), num_rounds=2)
    seen = []
    strategy.strategy.configure_train = lambda number, *_: seen.append(number) or []
    strategy.configure_train(1, ArrayRecord(make_state(9, width=16)), {}, InlineGrid(clients(0), CLIENTS))
    assert seen == [1]
