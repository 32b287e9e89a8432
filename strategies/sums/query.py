"""Asking the clients for sums: one round trip; what is bad or late is left out and named."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedrebasin.errors import CalibrationError
from fedrebasin.sums import Statistic

from ..flower import log
from ..replies import MAX_EXAMPLES, RecordError, send_and_stream
from .encoding import MODEL, QUERY, SUMS, decode_sums, describe_statistic

MAX_BYTES = 2**31


@dataclass(frozen=True)
class Question:
    """What to sum, and the model to run for it."""

    statistic: Statistic[Any]
    model: ArrayRecord


def ask(
    grid: Grid,
    questions: Mapping[int, Question],
    *,
    timeout: float,
    message_type: str = QUERY,
    max_bytes: int = MAX_BYTES,
    max_examples: int | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Ask nodes for sums over their own data; answers come one by one, as they arrive.

    Args:
        grid: Flower's grid.
        questions: by node.
        timeout: seconds to wait; a client that died is noticed only then.
        message_type: of the queries, see :class:`fedrebasin.strategies.Aligned`.
        max_bytes: sums larger than this are refused.
        max_examples: how many examples are enough of each node; None for all.

    Yields:
        a node and its sums, valid for their statistic. Nodes that refuse, fail, are late or send something absurd are
        left out and logged with the reason.
    """
    # A statistic can carry a model: it is encoded once for all that are asked the same.
    statistics = {id(question.statistic): question.statistic for question in questions.values()}
    described = {key: describe_statistic(statistic, max_examples) for key, statistic in statistics.items()}
    messages = [
        Message(RecordDict({MODEL: question.model, **described[id(question.statistic)]}), node_id, message_type)
        for node_id, question in questions.items()
    ]
    unanswered = dict(questions)
    for reply in send_and_stream(grid, messages, timeout):
        node_id = reply.metadata.src_node_id
        question = unanswered.pop(node_id, None)
        if question is None:
            continue
        try:
            yield node_id, _read(reply, question.statistic, max_bytes)
        except (RecordError, CalibrationError) as error:
            log(WARNING, "%s: left out node %d: %s", question.statistic.name, node_id, error)
    for node_id, question in unanswered.items():
        log(WARNING, "%s: left out node %d: no answer within %g s", question.statistic.name, node_id, timeout)


def _read(reply: Message, statistic: Statistic[Any], max_bytes: int) -> dict[str, Tensor]:
    if reply.has_error():
        raise RecordError(reply.error.reason)
    if SUMS not in reply.content.array_records:
        raise RecordError("an answer without sums")
    sums = decode_sums(reply.content.array_records[SUMS], max_bytes)
    if not sums:
        raise RecordError("the node has no examples")
    statistic.validate(sums)
    if float(sums["examples"]) > MAX_EXAMPLES:
        raise RecordError(
            f"sums over {float(sums['examples']):g} examples, where at most {MAX_EXAMPLES:g} are believed"
        )
    return sums
