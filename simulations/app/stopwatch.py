"""How long a strategy's aggregation takes."""

import time
from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy


class Stopwatch:
    """Times a strategy's aggregation: ``seconds`` is what the last one took.

    It watches the strategy's own method instead of wrapping the strategy, whose name and settings stay in Flower's log.

    Args:
        strategy: the one to time.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.seconds = 0.0
        self._aggregate = strategy.aggregate_train
        strategy.aggregate_train = self._timed  # type: ignore[method-assign]

    def _timed(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        started = time.perf_counter()
        try:
            return self._aggregate(server_round, replies)
        finally:
            self.seconds = time.perf_counter() - started
