"""Sums of clients: added up to something finite, or left out with a reason."""

import json
import logging

import torch
from fedrebasin.strategies.replies import RecordError
from fedrebasin.strategies.sums import Question, ask, encode_sums
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import CalibrationError, collect_sums
from fedrebasin.simulations import InlineGrid
from fedrebasin.sums import add_sums
from tests.fuzzing.asked import ASKED, batches, make_model
from tests.fuzzing.documents import content_of, document_of, parsed
from tests.fuzzing.engine import CannotTravel, Target, assert_nothing_found, logging_from
from tests.fuzzing.mutating import mutate_document

MODEL = ArrayRecord(make_model(3).state_dict())
HONEST = {
    name: collect_sums(statistic, make_model(), make_model(3).state_dict(), batches())
    for name, statistic in ASKED.items()
}


def seeds():
    found = []
    for name, sums in HONEST.items():
        metrics = MetricRecord({"num-examples": float(sums["examples"])})
        document = document_of(RecordDict({"sums": encode_sums(sums), "metrics": metrics}))
        found.append(json.dumps({"asked": name, **document}).encode())
    return found


def tensors_in(value):
    """All tensors and numbers in whatever a statistic finishes with."""
    if isinstance(value, torch.Tensor | int | float):
        yield torch.as_tensor(value, dtype=torch.float64)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


def check(data):
    document = parsed(data)
    try:
        statistic, honest = ASKED[document["asked"]], HONEST[document["asked"]]
    except (KeyError, TypeError) as error:
        raise CannotTravel from error
    content = content_of(document)
    app = ClientApp()

    @app.query("fedrebasin")
    def _(message, context):
        return Message(content, reply_to=message)

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    with logging_from(logging.WARNING) as logger:
        others, logger.handlers = logger.handlers, [handler]
        try:
            answers = dict(ask(InlineGrid(app, 1), {1: Question(statistic, MODEL)}, timeout=60))
        finally:
            logger.handlers = others
    if not answers:
        assert len(said) == 1, said
        raise RecordError(said[0])
    total = add_sums(honest, answers[1])
    try:
        finished = statistic.finish(total)
    except CalibrationError:
        return  # calibrators go on without
    for tensor in tensors_in(finished):
        assert torch.isfinite(tensor).all(), "sums that were admitted spoil the total"


def target_in(_):
    return Target("sums", seeds, check, mutate_document)


def test_sums_are_added_or_left_out(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=250)
