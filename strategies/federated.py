"""Sums from the clients that took part in a round, added up or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from fedrebasin import CalibrationError, Statistic, add_sums

from .device import move
from .query import Question, ask
from .round import Round
from .wire import encode_sums

TIMEOUT = 600.0


def summed(
    round_: Round, statistic: Statistic[Any], state: Mapping[str, Tensor], timeout: float = TIMEOUT
) -> tuple[dict[str, Tensor], int]:
    """A statistic of one model, over the data of all clients of the round.

    Args:
        round_: whose clients are asked.
        statistic: what to sum.
        state: the model that every client runs.
        timeout: seconds to wait for the slowest.

    Returns:
        the sums, on the round's device, and how many clients were left out.

    Raises:
        CalibrationError: if no client gave sums, or they do not fit one another.
    """
    model = encode_sums(state)
    total: dict[str, Tensor] = {}
    answered = 0
    for _, sums in ask(
        round_.grid,
        {reply.node_id: Question(statistic, model) for reply in round_.replies},
        timeout=timeout,
        message_type=round_.query_type,
    ):
        total = add_sums(total, sums)
        answered += 1
    if not total:
        raise CalibrationError(f"{statistic.name}: no client sent sums")
    return move(total, round_.device), len(round_.replies) - answered


def each(
    round_: Round, question: Callable[[int], Question], timeout: float = TIMEOUT
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A statistic of each client on its own data, one client at a time: Gram matrices are larger than models.

    Args:
        round_: whose clients are asked.
        question: for the client at a position in ``round_.replies``.
        timeout: seconds to wait for the slowest.

    Yields:
        the client's position and its sums, on the round's device, as they arrive; clients without sums are left out.
    """
    positions = {reply.node_id: position for position, reply in enumerate(round_.replies)}
    questions = {node_id: question(position) for node_id, position in positions.items()}
    for node_id, sums in ask(round_.grid, questions, timeout=timeout, message_type=round_.query_type):
        yield positions[node_id], move(sums, round_.device)
