"""What a comparison found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedrebasin.analysis import Barrier

from ..config import SimulationConfig
from .figures import REFERENCES, Row
from .provenance import Origin


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        config: what was run.
        strategies: the names, in the order asked for.
        rows: for each strategy one row a round, then the reference rows.
        paths: the loss along the line between the first two clients, ``before`` and ``after`` the second one was
            permuted by weight matching.
        label_counts: examples of each class (columns) that each client (rows) trained on.
        seconds: that everything took.
        origin: versions, machine and time.
    """

    config: SimulationConfig
    strategies: tuple[str, ...]
    rows: tuple[Row, ...]
    paths: Mapping[str, Barrier]
    label_counts: tuple[tuple[int, ...], ...]
    seconds: float
    origin: Origin = field(default_factory=Origin)

    @property
    def final_rows(self) -> tuple[Row, ...]:
        """The last row of each strategy, then the reference rows."""
        last = {row.strategy: row for row in self.rows}
        return tuple(last.values())

    def row(self, strategy: str) -> Row:
        """The last row of a strategy or a reference."""
        return next(row for row in self.final_rows if row.strategy == strategy)

    def only(self, strategies: Sequence[str]) -> Comparison:
        """The same without the strategies that are not named, in the order of the names; references stay."""
        rows = [row for name in (*strategies, *REFERENCES) for row in self.rows if row.strategy == name]
        return replace(self, strategies=tuple(strategies), rows=tuple(rows))

    def joined(self, later: Comparison) -> Comparison:
        """With the strategies of a later run of the same configuration."""
        both = replace(self, rows=(*later.rows, *self.rows), seconds=self.seconds + later.seconds, origin=later.origin)
        rows = {(row.strategy, row.round): row for row in both.rows}
        names = dict.fromkeys((*self.strategies, *later.strategies))
        return replace(both, rows=tuple(rows.values())).only(list(names))
