"""Sums from the clients that took part in a round, added up or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from fedrebasin import CalibrationError, Statistic, add_sums

from .query import Question, ask
from .records import State
from .round import Round
from .screening import Reply
from .wire import encode_sums, move

TIMEOUT = 600.0


def summed(
    round_: Round, statistic: Statistic[Any], state: State, timeout: float = TIMEOUT
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
    found = ask(round_.grid, {reply.node_id: Question(statistic, model) for reply in round_.replies}, timeout=timeout)
    total: dict[str, Tensor] = {}
    for sums in found.values():
        total = add_sums(total, sums)
    return move(_demand(total, statistic.name), round_.device), len(round_.replies) - len(found)


def each(
    round_: Round,
    question: Callable[[int, Reply], tuple[Statistic[Any], Mapping[str, Tensor] | ArrayRecord]],
    timeout: float = TIMEOUT,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A statistic of each client's own model on its own data, one client at a time.

    Gram matrices are larger than models: one client's are folded in and released before the next one is asked.

    Args:
        round_: whose clients are asked.
        question: the statistic and the model for the client at a position in ``round_.replies``.
        timeout: seconds to wait for each.

    Yields:
        the client's position and its sums, on the round's device; clients without sums are left out.
    """
    for position, reply in enumerate(round_.replies):
        statistic, model = question(position, reply)
        arrays = model if isinstance(model, ArrayRecord) else encode_sums(model)
        found = ask(round_.grid, {reply.node_id: Question(statistic, arrays)}, timeout=timeout)
        if reply.node_id in found:
            yield position, move(found[reply.node_id], round_.device)


def _demand(sums: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    if not sums:
        raise CalibrationError(f"{name}: no client sent sums")
    return sums
