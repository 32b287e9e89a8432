"""Replies of clients: admitted as models of the right form, or set aside with a reason, and the round goes on."""

import json
import random

import numpy as np
import torch
from fedrebasin.strategies.replies import MAX_EXAMPLES, RecordError, Screener, Template
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedrebasin import PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned
from tests.fuzzing.documents import content_of, document_of, parsed
from tests.fuzzing.engine import Target, assert_nothing_found
from tests.fuzzing.mutating import mutate_document
from tests.strategies.helpers import AXES, make_state

CLIENTS = 4
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
SPEC = PermutationSpec.from_axes(AXES)
START = make_state(9)
STRATEGIES = [
    lambda: Aligned(FedAvg(**COMMON), spec=SPEC),
    lambda: Aligned(FedAvg(**COMMON), spec=SPEC, streaming=True),
    lambda: Aligned(FedMedian(**COMMON), spec=SPEC),
]


def content(state, **metrics):
    record = MetricRecord({"num-examples": 10, "train-loss": 0.5} | metrics)
    return RecordDict({"arrays": ArrayRecord(dict(state)), "metrics": record})


def fortran(state):
    """Arrays in the other order, and in other precisions: numpy writes other headers."""
    arrays = {key: np.asfortranarray(tensor.numpy()) for key, tensor in state.items()}
    arrays["0.weight"] = arrays["0.weight"].astype(np.float16)
    return ArrayRecord({key: Array(values) for key, values in arrays.items()})


def seeds():
    other = RecordDict({"arrays": fortran(START), "metrics": MetricRecord({"num-examples": 3, "train-loss": 0.1})})
    found = [content(make_state(1)), content(START), other, content(START, more=[1.0, 2.0])]
    return [json.dumps(document_of(one)).encode() for one in found]


def check(data):
    InlineGrid(ClientApp(), 1)
    received = content_of(parsed(data))
    asked = Message(RecordDict(), 1, "train")
    template = Template.of(ArrayRecord(dict(START)))
    screener = Screener(template, FedAvg(), [asked.metadata])
    admitted = screener.admit(Message(received, reply_to=asked))
    if admitted is not None:
        assert 0 < admitted.num_examples <= MAX_EXAMPLES
        assert all(tensor.shape == START[key].shape for key, tensor in admitted.state.items())
        assert all(torch.isfinite(tensor).all() for tensor in admitted.state.values())
    strategy = random.Random(data).choice(STRATEGIES)()
    grid = InlineGrid(ClientApp(), CLIENTS)
    arrays = ArrayRecord(dict(START))
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    contents = [received, *(content(make_state(10 + number)) for number in range(CLIENTS - 1))]
    replies = [Message(one, reply_to=message) for one, message in zip(contents, messages, strict=True)]
    result, _ = strategy.aggregate_train(1, replies if not strategy.streaming else iter(replies))
    for key, tensor in result.to_torch_state_dict().items():
        assert tensor.shape == START[key].shape
        assert torch.isfinite(tensor).all()
    if admitted is None:
        raise RecordError(screener.bad[0].reason)


def target_in(_):
    return Target("replies", seeds, check, mutate_document)


def test_a_reply_is_admitted_or_set_aside_and_the_round_goes_on(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=200)
