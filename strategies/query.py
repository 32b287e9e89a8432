"""Asking the clients for sums: one round trip; what is bad or late is left out and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from fedrebasin import CalibrationError, Statistic

from .records import RecordError
from .wire import ACTION, MODEL, SUMS, decode_sums, describe_statistic

MAX_BYTES = 2**31


@dataclass(frozen=True)
class Question:
    """What to sum, and the model to run for it."""

    statistic: Statistic[Any]
    model: ArrayRecord


def ask(
    grid: Grid, questions: Mapping[int, Question], *, timeout: float, max_bytes: int = MAX_BYTES
) -> dict[int, dict[str, Tensor]]:
    """Ask nodes for sums over their own data.

    Args:
        grid: Flower's grid.
        questions: by node.
        timeout: seconds to wait; a client that died is noticed only then.
        max_bytes: sums larger than this are refused.

    Returns:
        the sums by node, valid for their statistic. Nodes that refuse, fail, are late or send something absurd are
        left out and logged with the reason.
    """
    # A list: a generator works in a simulation and fails in a deployment.
    messages = [
        Message(
            RecordDict({MODEL: question.model, **describe_statistic(question.statistic)}), node_id, f"query.{ACTION}"
        )
        for node_id, question in questions.items()
    ]
    sums: dict[int, dict[str, Tensor]] = {}
    left_out: dict[int, str] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node_id = reply.metadata.src_node_id
        if node_id not in questions or node_id in sums or node_id in left_out:
            continue
        try:
            sums[node_id] = _read(reply, questions[node_id].statistic, max_bytes)
        except (RecordError, CalibrationError) as error:
            left_out[node_id] = str(error)
    for node_id, question in questions.items():
        if node_id not in sums:
            reason = left_out.get(node_id, f"no answer within {timeout:g} s")
            log(WARNING, "%s: left out node %d: %s", question.statistic.name, node_id, reason)
    return {node_id: sums[node_id] for node_id in questions if node_id in sums}


def _read(reply: Message, statistic: Statistic[Any], max_bytes: int) -> dict[str, Tensor]:
    if reply.has_error():
        raise RecordError(reply.error.reason)
    if SUMS not in reply.content.array_records:
        raise RecordError("an answer without sums")
    sums = decode_sums(reply.content.array_records[SUMS], max_bytes)
    if not sums:
        raise RecordError("the node has no examples")
    statistic.validate(sums)
    return sums
