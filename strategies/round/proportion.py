"""How much one client's sums may count: no more than some times what is usual."""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from logging import WARNING
from typing import Any

from torch import Tensor

from fedrebasin.sums import Statistic, scaled, sizes_of

from ..flower import log
from ..replies import FIRST, median_of_others
from .round import Round

Answer = tuple[int, dict[str, Tensor]]
StatisticOf = Callable[[int], Statistic[Any]]

#: How many times the usual size a client's sums may have for each example that its reply claims: honest clients' data
#: do not differ as much, and whoever multiplies sums gains no more.
PER_EXAMPLE = 10.0
#: How many times the usual size they may have with a robust strategy inside, whatever is claimed: such strategies give
#: each reply one vote. Two of them outweigh no two others.
VOTE = 2.0


def in_proportion(
    round_: Round, answers: Iterable[Answer], statistic: StatisticOf, max_examples: int | None = None
) -> Iterator[Answer]:
    """The clients' sums, those that are larger than most scaled down to what they may be.

    Sizes (see :func:`fedrebasin.sums.sizes_of`) are compared with the median of the others': with a robust strategy
    inside as they are, once all have come; else for each example that a client's reply counts for, which is capped
    itself, with those that have come before. The first three wait for one another, and no more are held.

    Args:
        round_: whose clients have answered.
        answers: positions in ``round_.replies`` and sums, as they arrive.
        statistic: of the client at a position.
        max_examples: how many examples each was asked for; None for all.

    Yields:
        the same, in the same order.
    """
    known: dict[str, list[float]] = {}
    waiting: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []
    for number, (position, sums) in enumerate(answers, 1):
        sizes = _sizes(round_, position, statistic(position), sums, max_examples)
        for part, size in sizes.items():
            insort(known.setdefault(part, []), size)
        waiting.append((position, sums, sizes))
        if number >= FIRST and not round_.robust:
            yield from _bounded(round_, waiting, known)
    yield from _bounded(round_, waiting, known)


def votes(round_: Round) -> list[float]:
    """For how many examples each reply counts: with a robust strategy inside for no more than some times the usual."""
    claimed = [reply.num_examples for reply in round_.replies]
    if not round_.robust:
        return claimed
    known = sorted(claimed)
    return [min(each, VOTE * (median_of_others(known, each) or each)) for each in claimed]


def _sizes(
    round_: Round, position: int, statistic: Statistic[Any], sums: dict[str, Tensor], max_examples: int | None
) -> dict[str, float]:
    sizes = sizes_of(statistic, sums)
    if round_.robust:
        return sizes
    claimed = round_.replies[position].num_examples
    claimed = claimed if max_examples is None else min(claimed, max_examples)
    return {part: size / claimed for part, size in sizes.items()}


def _bounded(
    round_: Round, waiting: list[tuple[int, dict[str, Tensor], dict[str, float]]], known: dict[str, list[float]]
) -> Iterator[Answer]:
    """What waits, in order, and let go of."""
    ratio = VOTE if round_.robust else PER_EXAMPLE
    while waiting:
        position, sums, sizes = waiting.pop(0)
        told = {part: size for part, size in sizes.items() if len(known[part]) >= FIRST}  # of two neither is usual
        usual = {part: median_of_others(known[part], size) for part, size in told.items()}
        over = {part: size / (ratio * usual[part]) for part, size in told.items() if usual[part]}
        part = max(over, key=lambda name: over[name], default="")
        if part and over[part] > 1:
            log(
                WARNING,
                "node %d: its sums' %s is %.3g times the others': it counts for %g times",
                *(round_.replies[position].node_id, part, ratio * over[part], ratio),
            )
            sums = scaled(sums, 1 / over[part])
        yield position, sums
