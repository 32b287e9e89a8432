"""When a probe runs, and how long it goes on."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedrebasin.errors import RebasinError

from ..round import Round

Item = TypeVar("Item")


def _equal(item: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Schedule:
    """When a probe runs, and how long it may.

    Args:
        every: run in rounds that this divides.
        seconds: start no further measurement that would end after this, judged by those before it; None for no limit.
            The first one always runs to its end.

    Raises:
        RebasinError: if one of them is not positive.
    """

    every: int = field(default=1, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.every < 1 or (self.seconds is not None and not self.seconds > 0):
            raise RebasinError(f"every {self.every}, seconds {self.seconds}: both must be positive")

    def due(self, round_: Round) -> bool:
        """Whether this is one of the probe's rounds."""
        return round_.server_round % self.every == 0

    def affordable(
        self,
        items: Iterable[Item],
        cost: Callable[[Item], float] = _equal,
        kind: Callable[[Item], object] = _equal,
    ) -> Iterator[Item]:
        """The items for which there is time, as they are asked for: what is done with one is timed.

        Args:
            items: what to measure, in order.
            cost: of an item, in any unit; the time that an item takes is judged by the time per unit so far.
            kind: what of an item costs can be compared of; the first item of a kind runs if there is time left at all.
        """
        started = time.perf_counter()
        spent: dict[object, tuple[float, float]] = {}
        for number, item in enumerate(items):
            begun = time.perf_counter()
            seconds, units = spent.get(kind(item), (0.0, 0.0))
            expected = seconds / units * cost(item) if units else 0.0
            if self.seconds is not None and number and begun - started + expected > self.seconds:
                return
            yield item
            spent[kind(item)] = (seconds + time.perf_counter() - begun, units + cost(item))
