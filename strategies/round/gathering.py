"""Sums from the clients that took part in a round, added up or one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any

from flwr.common import log
from torch import Tensor

from fedrebasin.devices import move
from fedrebasin.errors import CalibrationError
from fedrebasin.sums import Statistic, add_sums

from ..sums import Question, ask, encode_sums
from .round import Round

TIMEOUT = 600.0

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def summed(
    round_: Round,
    statistic: Statistic[Any],
    state: Mapping[str, Tensor],
    timeout: float = TIMEOUT,
    max_examples: int | None = None,
) -> tuple[dict[str, Tensor], int]:
    """A statistic of one model, over the data of all clients of the round.

    Args:
        round_: whose clients are asked.
        statistic: what to sum.
        state: the model that every client runs; a second one is a setting of the statistic.
        timeout: seconds to wait for the slowest.
        max_examples: how many examples are enough of each client; None for all.

    Returns:
        the sums, on the round's device, and how many clients were left out: those without usable sums, and those
        whose sums have another form than most.

    Raises:
        CalibrationError: if no client gave sums.
    """
    model = encode_sums(state)
    totals: dict[Shapes, dict[str, Tensor]] = {}
    answered: Counter[Shapes] = Counter()
    for _, sums in ask(
        round_.grid,
        {reply.node_id: Question(statistic, model) for reply in round_.replies},
        timeout=timeout,
        message_type=round_.query_type,
        max_examples=max_examples,
    ):
        shapes = shapes_of(sums)
        totals[shapes] = add_sums(totals.get(shapes, {}), sums)
        answered[shapes] += 1
    if not totals:
        raise CalibrationError(f"{statistic.name}: no client sent sums")
    usual = usual_shapes(answered, statistic.name)
    return move(totals[usual], round_.device), len(round_.replies) - answered[usual]


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


def alike(answers: Sequence[tuple[int, dict[str, Tensor]]], who: str) -> list[tuple[int, dict[str, Tensor]]]:
    """The answers whose sums have the form that most have; sums of another form cannot be added to them.

    Raises:
        CalibrationError: if there are none.
    """
    if not answers:
        raise CalibrationError(f"{who}: no client sent sums")
    usual = usual_shapes(Counter(shapes_of(sums) for _, sums in answers), who)
    return [(position, sums) for position, sums in answers if shapes_of(sums) == usual]


def shapes_of(sums: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes."""
    return tuple(sorted((key, tuple(tensor.shape)) for key, tensor in sums.items()))


def usual_shapes(answered: Counter[Shapes], who: str) -> Shapes:
    """The form of most answers, the first one of equals; the others are logged."""
    ((usual, count),) = answered.most_common(1)
    if others := answered.total() - count:
        log(WARNING, "%s: left out %d clients whose sums have another form than most", who, others)
    return usual
