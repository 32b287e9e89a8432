"""Many rounds: what lives afterwards does not grow with them, but for the rounds' metrics."""

import gc
import logging
import os
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned
from tests.strategies.helpers import AXES, make_state

CLIENTS, ROUNDS, WARM = 3, 60, 20
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
SPEC = PermutationSpec.from_axes(AXES)
KINDS = (torch.Tensor, np.ndarray, Array, ArrayRecord, Message, Permutation, threading.Thread)
METRICS = 20  # objects that a round's metrics may be


def app():
    made = ClientApp()

    @made.train()
    def train(message, context):
        arrays = message.content["arrays"]
        metrics = MetricRecord({"num-examples": 10, "train-loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return made


def living():
    """How many objects of each kind there are, found by their types.

    ``isinstance`` would not do: abstract classes such as ArrayRecord keep two objects for every type that they were
    asked about, so that the first look brings to life more than any round, the more the larger the process is.
    """
    gc.collect()
    objects = gc.get_objects()
    types = Counter(map(type, objects))
    return {kind.__name__: sum(types[one] for one in types if kind in one.__mro__) for kind in KINDS} | {
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "all": len(objects),
    }


def grown(strategy):
    """What more lives after the last round than after those that warm up."""
    seen = {}

    def look(number, arrays):
        if number in (WARM, ROUNDS):
            seen[number] = living()
        return MetricRecord({})

    strategy.start(InlineGrid(app(), CLIENTS), ArrayRecord(make_state(0)), num_rounds=ROUNDS, evaluate_fn=look)
    return {what: many - seen[WARM][what] for what, many in seen[ROUNDS].items()}


@pytest.mark.parametrize("kind", ["plain", "streamed", "checkpoints", "robust"])
def test_nothing_but_metrics_grows(tmp_path, kind, caplog):
    caplog.set_level(logging.CRITICAL, logger="flwr")  # what is logged is kept by the test
    strategy = {
        "plain": lambda: Aligned(FedAvg(**COMMON), spec=SPEC),
        "streamed": lambda: Aligned(FedAvg(**COMMON), spec=SPEC, frame="client", streaming=True),
        "checkpoints": lambda: Aligned(FedAvgM(**COMMON), spec=SPEC, checkpoint=tmp_path),
        "robust": lambda: Aligned(FedMedian(**COMMON), spec=SPEC),
    }[kind]
    more = grown(strategy())
    assert more.pop("all") <= METRICS * (ROUNDS - WARM)
    assert not any(many > 0 for many in more.values()), more


def test_what_is_kept_is_noticed():
    strategy, kept = Aligned(FedAvg(**COMMON), spec=SPEC), []
    original = strategy.aggregate_train
    strategy.aggregate_train = lambda number, replies: kept.append(list(replies)) or original(number, kept[-1])
    assert grown(strategy)["Message"] >= ROUNDS - WARM


def test_looking_brings_nothing_to_life():
    strangers = [type(f"Stranger{number}", (), {})() for number in range(500)]
    before = living()["all"]
    assert living()["all"] - before < len(strangers)
