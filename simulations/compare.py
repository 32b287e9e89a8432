"""The comparison: clients are trained once, several strategies merge them, and reference rows show what is possible."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedrebasin import Barrier, RebasinError
from fedrebasin.strategies import Aligned

from .choices import demand_choices, make_strategy
from .client_app import make_client_app
from .config import SimulationConfig
from .engines import on_engine
from .federation import Federation
from .measure import REFERENCES, Bin, Row, Stopwatch
from .moved import MovedUnits
from .origin import Origin
from .references import Progress, judge_of, paths_between, reference_rows
from .replay import ReplayGrid
from .training import reproducible

DEFAULT_STRATEGIES = ("fedavg", "rebasin", "merge-many", "wide-avg", "rebasin+seqreg+head+temperature")


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


def compare(
    config: SimulationConfig,
    strategies: Sequence[str] = DEFAULT_STRATEGIES,
    *,
    engine: str = "inline",
    partitioner: Any = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run strategies over the same trained clients.

    Args:
        config: the federation.
        strategies: names, each once; see :func:`make_strategy`.
        engine: ``inline`` or ``flower``; both give the same numbers.
        partitioner: one of flwr-datasets, instead of the config's partition.
        progress: called with who is at work (a client, a strategy), how much is done (epochs, rounds), and of how much.

    Raises:
        RebasinError: if an option is not allowed, the data is missing, or a client fails.
    """
    demand_choices(strategies, engine)
    started = time.perf_counter()
    report = progress or _silent
    federation = Federation(config, partitioner)
    origin = Origin.now(federation.device, engine)
    parts = federation.parts  # fails here, not in a client, if there is no data

    def client_epoch(partition: int, epoch: int) -> None:
        report(f"client {partition}", epoch, config.local_epochs)

    inline = engine == "inline"
    client_app = make_client_app(partitioner, client_epoch if inline else None)
    if not inline:
        report("clients in Flower's engine", 0, config.clients)
    with reproducible():
        rows, clients = on_engine(
            engine,
            client_app,
            config.clients,
            lambda grid: _run_strategies(ReplayGrid(grid), federation, strategies, report),
            gpu=federation.device.type == "cuda",
        )
        if not inline:
            report("clients in Flower's engine", config.clients, config.clients)
        rows += reference_rows(federation, clients, report)
        paths = paths_between(federation, clients)
    labels = federation.dataset.train_labels.numpy()
    counts = [torch.bincount(torch.from_numpy(labels[part]), minlength=federation.dataset.classes) for part in parts]
    return Comparison(
        config=config,
        strategies=tuple(strategies),
        rows=tuple(rows),
        paths=paths,
        label_counts=tuple(tuple(count.tolist()) for count in counts),
        seconds=time.perf_counter() - started,
        origin=origin,
    )


def run_strategy(
    name: str, federation: Federation, grid: Grid, progress: Progress | None = None
) -> tuple[list[Row], ArrayRecord]:
    """Run one strategy for all rounds and judge the global model after each; the rows and the last global model.

    Raises:
        RebasinError: if a round ends without a usable model.
    """
    config = federation.config
    report = progress or _silent
    report(name, 0, config.rounds)
    moved = MovedUnits()
    strategy = make_strategy(name, federation, probes=(moved,))
    stopwatch = Stopwatch(strategy)
    judge, model = judge_of(federation), federation.server_model()
    rows: list[Row] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        delivered = strategy.beta if isinstance(strategy, Aligned) and strategy.beta else 1.0
        logits = federation.predict(model)
        figures = judge(logits, delivered)
        last = server_round == config.rounds
        bins: tuple[Bin, ...] = judge.bins(logits, delivered) if last else ()
        moves = dict(moved.shares) if last else {}
        rows.append(Row(name, config.seed, server_round, figures, stopwatch.seconds, {}, bins, moves))
        report(name, server_round, config.rounds)
        return MetricRecord({key.replace("_", "-"): value for key, value in asdict(figures).items()})

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=config.rounds,
        train_config=ConfigRecord(dict(config.to_flower())),
        evaluate_fn=evaluate,
    )
    if not result.arrays:
        raise RebasinError(f"strategy {name}: no round ended with a usable model")
    reported = result.train_metrics_clientapp
    return [_with_metrics(row, reported.get(row.round)) for row in rows], result.arrays


def _run_strategies(
    grid: ReplayGrid, federation: Federation, strategies: Sequence[str], report: Progress
) -> tuple[list[Row], list[ArrayRecord]]:
    rows: list[Row] = []
    for name in strategies:
        rows += run_strategy(name, federation, grid, report)[0]
    return rows, grid.first_replies()


def _silent(who: str, done: int, total: int) -> None:
    """Nobody watches."""


def _with_metrics(row: Row, metrics: MetricRecord | None) -> Row:
    numbers = {key: float(value) for key, value in (metrics or {}).items() if not isinstance(value, list)}
    return replace(row, metrics=numbers)
