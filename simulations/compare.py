"""The comparison: clients are trained once, several strategies merge them, and reference rows show what is possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from torch import nn

from fedrebasin import Barrier, RebasinError, WeightMatching, ensemble_log_probabilities, loss_barrier
from fedrebasin.strategies import Aligned, to_state

from .choices import make_strategy, parse_strategy
from .client_app import make_client_app
from .config import SimulationConfig, choose
from .engines import ENGINES, on_engine
from .federation import Federation
from .measure import REFERENCES, Figures, Judge, Row, Stopwatch
from .replay import ReplayGrid
from .training import predict, reproducible

DEFAULT_STRATEGIES = ("fedavg", "rebasin", "merge-many", "wide-avg", "rebasin+seqreg+head+temperature")
PATH_POINTS = 25
PATH_EXAMPLES = 2000

Progress = Callable[[str, int, int], None]


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
    """

    config: SimulationConfig
    strategies: tuple[str, ...]
    rows: tuple[Row, ...]
    paths: Mapping[str, Barrier]
    label_counts: tuple[tuple[int, ...], ...]
    seconds: float

    @property
    def final_rows(self) -> tuple[Row, ...]:
        """The last row of each strategy, then the reference rows."""
        last = {row.strategy: row for row in self.rows}
        return tuple(last.values())

    def row(self, strategy: str) -> Row:
        """The last row of a strategy or a reference."""
        return next(row for row in self.final_rows if row.strategy == strategy)


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
    for name in strategies:
        parse_strategy(name)
    choose("engine", engine, ENGINES)
    if not strategies or len(set(strategies)) != len(strategies):
        raise RebasinError("strategies: name at least one, each once")
    started = time.perf_counter()
    report = progress or _silent
    federation = Federation(config, partitioner)
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
        rows += _reference_rows(federation, clients, report)
        paths = _paths(federation, clients)
    labels = federation.dataset.train_labels.numpy()
    counts = [torch.bincount(torch.from_numpy(labels[part]), minlength=federation.dataset.classes) for part in parts]
    return Comparison(
        config=config,
        strategies=tuple(strategies),
        rows=tuple(rows),
        paths=paths,
        label_counts=tuple(tuple(count.tolist()) for count in counts),
        seconds=time.perf_counter() - started,
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
    strategy = make_strategy(name, federation)
    stopwatch = Stopwatch(strategy)
    judge, model = _judge(federation), federation.server_model()
    rows: list[Row] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        delivered = strategy.beta if isinstance(strategy, Aligned) and strategy.beta else 1.0
        figures = judge(federation.predict(model), delivered)
        rows.append(Row(name, config.seed, server_round, figures, stopwatch.seconds))
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


def _judge(federation: Federation) -> Judge:
    held_out, reported = federation.dataset.test_split()
    return Judge(federation.dataset.test_labels, held_out, reported)


def _reference_rows(federation: Federation, clients: Sequence[ArrayRecord], report: Progress) -> list[Row]:
    """The rows that put the strategies in proportion: the clients of round 1, alone and together, and all the data."""
    config, judge, model = federation.config, _judge(federation), federation.server_model()
    logits = []
    for arrays in clients:
        model.load_state_dict(arrays.to_torch_state_dict())
        logits.append(federation.predict(model))
    alone = [judge(one) for one in logits]
    everything = federation.train_on_all(lambda epoch: report("all data", epoch, config.local_epochs))
    figures = {
        "mean-client": Figures.mean(alone),
        "best-client": max(alone, key=lambda one: one.accuracy),
        "ensemble": judge(ensemble_log_probabilities([one.double() for one in logits])),
        "all-data": judge(predict(everything, federation.dataset.test_inputs)),
    }
    return [Row(name, config.seed, 1, figures[name]) for name in REFERENCES]


def _paths(federation: Federation, clients: Sequence[ArrayRecord]) -> dict[str, Barrier]:
    if len(clients) < 2:
        return {}
    first, second = (
        {key: tensor.to(federation.device) for key, tensor in to_state(arrays).items()} for arrays in clients[:2]
    )
    aligned = WeightMatching(seed=federation.config.seed)(federation.spec, reference=first, candidate=second)
    dataset = federation.dataset
    held_out, reported = dataset.test_split()
    shown = reported[:PATH_EXAMPLES]
    inputs, labels = dataset.test_inputs.to(federation.device), dataset.test_labels.to(federation.device)
    model = federation.server_model()
    has_statistics = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return {
        name: loss_barrier(
            model,
            first,
            end,
            [(inputs[shown], labels[shown])],
            points=PATH_POINTS,
            recalibrate=[(inputs[held_out], labels[held_out])] if has_statistics else None,
        )
        for name, end in (("before", second), ("after", aligned.apply(second)))
    }
