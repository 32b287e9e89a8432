"""Nodes that are silent, slow, answer twice or were never asked, and clocks that jump: nothing hangs or is lost."""

import threading
import time
from itertools import count

import pytest
import torch
from fedrebasin.strategies.replies import streaming as streaming_file
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedrebasin import PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned
from tests.strategies.helpers import AXES, make_state

CLIENTS, ROUNDS = 5, 3
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
SPEC = PermutationSpec.from_axes(AXES)
START = make_state(9)
KINDS = [(FedAvg, False), (FedAvg, True), (FedMedian, False), (FedMedian, True)]
TIMEOUT = 30.0


class Clock:
    """A clock of this thread's own: sleeping passes time, and the wall clock jumps by more than it.

    Other threads, of engines that were here before, keep the time that they have.
    """

    def __init__(self, monkeypatch, jumps=()):
        self.now, self.slept = 1e6, 0.0
        self._jumps = list(jumps)
        thread = threading.get_ident()
        for name, own in {"monotonic": lambda: self.now, "time": self.wall, "sleep": self.sleep}.items():
            real = getattr(time, name)

            def told(*seconds, own=own, real=real):
                return (own if threading.get_ident() == thread else real)(*seconds)

            monkeypatch.setattr(time, name, told)

    def wall(self):
        jump = self._jumps.pop(0) if self._jumps else 0.0
        self._jumps.append(jump)
        return 1.7e9 + self.now + jump

    def sleep(self, seconds):
        assert seconds >= 0
        self.slept += seconds
        self.now += seconds


class Federation(InlineGrid):
    """Clients that answer with the model and a step, but for what is done to the replies on their way.

    Args:
        change: the replies that can be pulled, from those of a round, its number and all replies so far.
    """

    def __init__(self, change):
        app = ClientApp()

        @app.train()
        def train(message, context):
            generator = torch.Generator().manual_seed(context.node_config["partition-id"])
            state = message.content["arrays"].to_torch_state_dict()
            near = {
                key: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) if tensor.dim() else tensor
                for key, tensor in state.items()
            }
            metrics = MetricRecord({"num-examples": 10, "train-loss": 0.5})
            return Message(RecordDict({"arrays": ArrayRecord(near), "metrics": metrics}), reply_to=message)

        super().__init__(app, CLIENTS)
        self._change, self._rounds, self.all = change, count(1), []

    def push_messages(self, messages):
        pushed = super().push_messages(messages)
        replies = [self._replies.pop(number) for number in pushed]
        self.arriving = self._change(replies, next(self._rounds), list(self.all)) if replies else []
        self.all += replies
        return pushed

    def pull_messages(self, message_ids):
        found = [reply for reply in self.arriving if reply is not None]
        self.arriving = []
        return found

    def send_and_receive(self, messages, *, timeout=None):
        self.push_messages(messages)
        return self.pull_messages(())


class Slow(Federation):
    """Node n answers when it was asked for the n-th time; the last one never."""

    def pull_messages(self, message_ids):
        return [self.arriving.pop(0)] if len(self.arriving) > 1 and next(self._asked) % 3 == 0 else []

    _asked = count(1)


def run(inner, streaming, change, grid=Federation):
    strategy = Aligned(inner(**COMMON), spec=SPEC, streaming=streaming)
    arrays = ArrayRecord(dict(START))
    return strategy.start(grid(change), arrays, num_rounds=ROUNDS, timeout=TIMEOUT)


def foreign(reply):
    """The same from a node that was not asked."""
    stranger = InlineGrid(ClientApp(), 1) and Message(RecordDict(), 999, "train")
    return Message(reply.content, reply_to=stranger)


#: What happens to replies, and how many of a round are set aside.
CASES = {
    "one is silent": (lambda replies, number, past: replies[:-1], 0),
    "all are silent": (lambda replies, number, past: [], None),
    "one answers twice": (lambda replies, number, past: [*replies, replies[0]], 1),
    "one was never asked": (lambda replies, number, past: [*replies, foreign(replies[0])], 1),
    "a stranger comes first": (lambda replies, number, past: [foreign(replies[0]), *replies], 1),
    "last round's come again": (
        lambda replies, number, past: [*past[-CLIENTS:], *replies] if past else replies,
        CLIENTS,
    ),
    "last round's instead of this one's": (
        lambda replies, number, past: [*replies[1:], *past[-CLIENTS : 1 - CLIENTS]],
        1,
    ),
}


def finite(arrays):
    return all(torch.isfinite(tensor).all() for tensor in arrays.to_torch_state_dict().values())


@pytest.mark.parametrize(("inner", "streaming"), KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_others_are_averaged(monkeypatch, name, inner, streaming):
    change, aside = CASES[name]
    clock = Clock(monkeypatch)
    result = run(inner, streaming, change)
    metrics = result.train_metrics_clientapp
    assert clock.slept <= ROUNDS * (TIMEOUT + 1)
    assert finite(result.arrays)
    if aside is None:
        for key, tensor in result.arrays.to_torch_state_dict().items():
            assert torch.equal(tensor, START[key])
        return
    assert len(metrics) == ROUNDS
    assert metrics[ROUNDS]["rebasin-replies-set-aside"] == aside
    expected = run(inner, streaming, {"one is silent": change}.get(name, _honest(name)))
    for key, tensor in expected.arrays.to_torch_state_dict().items():
        assert torch.equal(result.arrays.to_torch_state_dict()[key], tensor), key


def _honest(name):
    """What counts of the replies: those of nodes that were asked, once."""
    if name == "last round's instead of this one's":
        return lambda replies, number, past: replies[1:]
    return lambda replies, number, past: replies


@pytest.mark.parametrize("jumps", [(0.0, -1e7), (0.0, 1e7), (0.0, 3600.0, -7200.0)])
@pytest.mark.parametrize(("inner", "streaming"), KINDS)
def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch, jumps, inner, streaming):
    def honest(replies, number, past):
        return replies

    expected = run(inner, streaming, honest)
    clock = Clock(monkeypatch, jumps)
    found = run(inner, streaming, honest)
    assert clock.slept <= ROUNDS
    for key, tensor in expected.arrays.to_torch_state_dict().items():
        assert torch.equal(found.arrays.to_torch_state_dict()[key], tensor), key
    for metrics in found.train_metrics_clientapp.values():
        assert metrics["rebasin-seconds"] >= 0
        assert metrics["rebasin-replies-set-aside"] == 0


def test_slow_ones_are_waited_for_until_the_time_is_up(monkeypatch):
    clock = Clock(monkeypatch)
    result = run(FedAvg, True, lambda replies, number, past: replies, Slow)
    assert ROUNDS * TIMEOUT <= clock.slept <= ROUNDS * (TIMEOUT + 2 * streaming_file.POLL_SECONDS)
    assert finite(result.arrays)
    assert len(result.train_metrics_clientapp) == ROUNDS


def test_threads_of_others_do_not_pass_its_time(monkeypatch):
    clock = Clock(monkeypatch)
    other = threading.Thread(target=time.sleep, args=(0.01,))
    other.start()
    other.join()
    time.sleep(2.0)
    assert (clock.slept, clock.now) == (2.0, 1e6 + 2.0)
