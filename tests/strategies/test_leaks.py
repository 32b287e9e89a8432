"""What bad replies leave behind: nothing."""

import gc
import logging
import random
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import Identity, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, FedRebasin, RecordError, Template
from tests.strategies.helpers import AXES, CLIENTS, STRATEGIES, make_reply, make_state, run_round
from tests.strategies.test_screening import BAD_METRICS, BAD_RECORDS, START, bad_metrics

SPEC = PermutationSpec.from_axes(AXES)


def bad_replies():
    """One of each kind, from nodes 1 to 8 in turn."""
    for position, (record, _) in enumerate(BAD_RECORDS.values()):
        yield make_reply(ArrayRecord(dict(record)), node_id=1 + position % CLIENTS)
    for position, changes in enumerate(BAD_METRICS.values()):
        yield bad_metrics(changes, node_id=1 + position % CLIENTS)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("inner", ["FedAvg", "FedAdam", "FedMedian", "Krum", "DP-server"])
def test_a_bad_reply_is_let_go_of(inner, streaming):
    strategy = Aligned(STRATEGIES[inner](), aligner=Identity(), streaming=streaming)
    for bad in bad_replies():
        watched = [weakref.ref(bad), weakref.ref(bad.content["arrays"])]
        node = bad.metadata.src_node_id
        others = [make_reply(make_state(i), node_id=i + 1) for i in range(CLIENTS) if i + 1 != node][:3]
        run_round(strategy, START, [*others, bad])
        del bad, others
        if any(reference() is not None for reference in watched):
            gc.collect()
        assert all(reference() is None for reference in watched)


def test_many_rounds_of_bad_replies_take_no_more_memory_than_few():
    strategy = FedRebasin(STRATEGIES["FedAvg"](), spec=SPEC)

    def rounds(count):
        for _ in range(count):
            run_round(strategy, START, [*list(bad_replies())[:7], make_reply(make_state(3), node_id=8)])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    logging.disable(logging.CRITICAL)  # pytest keeps what is logged
    tracemalloc.start()
    try:
        rounds(2)
        few = rounds(2)
        many = rounds(12)
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
    assert many - few < 12 * 5000, "a round's replies are 50 kB"


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_makes_the_server_allocate_no_more_than_a_model(name):
    state = {**START, "0.weight": torch.zeros(6, 4), "big": torch.zeros(300, 300)}
    bad = ArrayRecord({**dict(BAD_RECORDS[name][0]), "big": Array(np.zeros((300, 300), np.float32))})
    template = Template.of(ArrayRecord(state))
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            template.decode(bad)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * template.nbytes + 50_000


class Replaying(InlineGrid):
    """Answers for node 1 with what node 1 answered in the first round."""

    first: Message | None = None

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for position, reply in enumerate(replies):
            if reply.metadata.src_node_id == 1:
                self.first = self.first or reply
                replies[position] = self.first
        return replies


@pytest.mark.parametrize("frame", ["server", "client"])
@pytest.mark.parametrize("inner", ["FedAvg", "FedMedian"])
def test_a_reply_of_an_earlier_round_is_set_aside(inner, frame):
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 5, "train-loss": 0.5})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    random.seed(0)
    strategy = Aligned(STRATEGIES[inner](), spec=SPEC, frame=frame)
    result = strategy.start(Replaying(app, CLIENTS), ArrayRecord(dict(START)), num_rounds=3)
    set_aside = [result.train_metrics_clientapp[number]["rebasin-replies-set-aside"] for number in (1, 2, 3)]
    assert set_aside == [0.0, 1.0, 1.0]
