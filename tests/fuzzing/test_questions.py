"""Requests for sums that reach a client: answered with finite sums, or with an error of a line."""

import json

import torch
from fedrebasin.strategies.clients.statistics_mod import REFUSED
from fedrebasin.strategies.replies import RecordError
from fedrebasin.strategies.sums.encoding import describe_statistic
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import StatisticsMod
from tests.fuzzing.asked import ASKED, batches, make_model
from tests.fuzzing.documents import content_of, document_of, parsed
from tests.fuzzing.engine import Target, assert_nothing_found
from tests.fuzzing.mutating import mutate_document

MOD = StatisticsMod(lambda _: make_model(), lambda _: batches(), device="cpu")
MODEL = ArrayRecord(make_model(3).state_dict())


def seeds():
    contents = [RecordDict({"arrays": MODEL, **describe_statistic(one)}) for one in ASKED.values()]
    contents.append(RecordDict({"arrays": MODEL, **describe_statistic(ASKED["temperature"], 20)}))
    return [json.dumps(document_of(one)).encode() for one in contents]


def check(data):
    InlineGrid(ClientApp(), 1)
    content = content_of(parsed(data))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    answer = MOD.answer(Message(content, 1, "query.fedrebasin"), context)
    if answer.has_error():
        assert answer.error.code == REFUSED
        raise RecordError(answer.error.reason)
    for key, tensor in answer.content["sums"].to_torch_state_dict().items():
        assert torch.isfinite(tensor).all(), f"{key} is not finite"


def target_in(_):
    return Target("questions", seeds, check, mutate_document)


def test_a_question_is_answered_or_refused(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=250)
