"""The comparison: clients are trained once, several strategies merge them, and reference rows show what is possible."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedrebasin import RebasinError
from fedrebasin.strategies import Aligned

from .choices import demand_choices, make_strategy
from .client_app import make_client_app
from .comparison import Comparison
from .config import SimulationConfig
from .engines import on_engine
from .federation import Federation
from .figures import Bin, Row
from .moved import MovedUnits
from .origin import Origin
from .references import Progress, judge_of, paths_between, reference_rows
from .replay import ReplayGrid
from .stopwatch import Stopwatch
from .training import reproducible

DEFAULT_STRATEGIES = ("fedavg", "rebasin", "merge-many", "wide-avg", "rebasin+seqreg+head+temperature")


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
