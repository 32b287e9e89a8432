"""The comparison: clients are trained once, several strategies merge them, and reference rows show what is possible."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord

from ..app import Progress, demand_choices, make_client_app, run_strategy, silent
from ..config import SimulationConfig
from ..engines import ReplayGrid, demand_resources, on_engine
from ..report import Comparison, Origin, Row
from ..training import Federation, reproducible
from .references import paths_between, reference_rows

DEFAULT_STRATEGIES = ("fedavg", "rebasin", "merge-many", "wide-avg", "rebasin+seqreg+head+temperature")


def compare(
    config: SimulationConfig,
    strategies: Sequence[str] = DEFAULT_STRATEGIES,
    *,
    engine: str = "inline",
    client_resources: Mapping[str, float] | None = None,
    ray: str | None = None,
    partitioner: Any = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run strategies over the same trained clients.

    Args:
        config: the federation.
        strategies: names, each once; see :func:`make_strategy`.
        engine: ``inline`` or ``flower``; both give the same numbers.
        client_resources: ``num_cpus`` and ``num_gpus`` of a client in Flower's engine, see :func:`on_engine`.
        ray: address of a Ray cluster that Flower's engine is to use, likewise.
        partitioner: one of flwr-datasets, instead of the config's partition.
        progress: called with who is at work (a client, a strategy), how much is done (epochs, rounds), and of how much.

    Raises:
        RebasinError: if an option is not allowed, the data is missing, or a client fails.
    """
    demand_choices(strategies, engine)
    demand_resources(engine, client_resources)
    started = time.perf_counter()
    report = progress or silent
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
            client_resources=client_resources,
            ray=ray,
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


def _run_strategies(
    grid: ReplayGrid, federation: Federation, strategies: Sequence[str], report: Progress
) -> tuple[list[Row], list[ArrayRecord]]:
    rows: list[Row] = []
    for name in strategies:
        rows += run_strategy(name, federation, grid, report)[0]
    return rows, grid.first_replies()
