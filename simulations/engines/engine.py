"""Where a federation runs: inside this process, or in Flower's own simulation engine."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrebasin import RebasinError
from fedrebasin.errors import choose

from .inline import run_inline

ENGINES = ("inline", "flower")
RESOURCES = ("num_cpus", "num_gpus")
CLIENTS_TIMEOUT = 120.0

T = TypeVar("T")


def demand_resources(engine: str, resources: Mapping[str, float] | None) -> None:
    """Refuse resources of a client that the engine does not know.

    Raises:
        RebasinError: with what it knows.
    """
    if not resources:
        return
    if engine != "flower":
        raise RebasinError(f"client resources are for engine flower: {engine} trains one client after the other")
    for name, amount in resources.items():
        choose("client resource", name, RESOURCES)
        if not (math.isfinite(amount) and amount >= 0) or (name == "num_cpus" and amount == 0):
            raise RebasinError(f"client resource {name} {amount}: it must be a positive number; GPUs may be 0")


def on_engine(
    engine: str,
    client_app: ClientApp,
    clients: int,
    work: Callable[[Grid], T],
    gpu: bool = False,
    client_resources: Mapping[str, float] | None = None,
) -> T:
    """What ``work`` returns, done as a ServerApp with a grid of ``clients`` nodes.

    Args:
        engine: ``inline`` or ``flower``.
        client_app: of every node.
        clients: number of nodes.
        work: called once with the grid.
        gpu: whether clients of Flower's engine share the GPU.
        client_resources: ``num_cpus`` and ``num_gpus`` of a client in Flower's engine (default: one core, and an equal
            part of one GPU where ``gpu``); as many clients run at the same time as these leave room for.

    Raises:
        RebasinError: if the engine does not know a resource.
        Exception: whatever ``work`` raises.
    """
    choose("engine", engine, ENGINES)
    demand_resources(engine, client_resources)
    server_app, results = ServerApp(), []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        wait_for_clients(grid, clients)
        results.append(work(grid))

    with _quiet_flower():
        if engine == "inline":
            run_inline(server_app, client_app, clients)
        else:
            from flwr.simulation import run_simulation

            resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 / clients if gpu else 0.0}
            resources |= client_resources or {}
            run_simulation(server_app, client_app, clients, backend_config={"client_resources": resources})
    return results[0]


def wait_for_clients(grid: Grid, clients: int) -> None:
    """Wait until all clients are there: FedAvg would otherwise sample from those that are.

    Raises:
        RebasinError: if there are more, or too few after two minutes.
    """
    deadline = time.monotonic() + CLIENTS_TIMEOUT
    while (nodes := len(list(grid.get_node_ids()))) < clients and time.monotonic() < deadline:
        time.sleep(0.1)
    if nodes != clients:
        raise RebasinError(
            f"the federation has {nodes} nodes where the simulation has {clients} clients: "
            f"flwr run . --federation-config num-supernodes={clients}"
        )


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower's log without its account of every round; warnings of the strategies still show."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)
        logger.setLevel(before)


def _is_news(record: logging.LogRecord) -> bool:
    # known here: run_simulation is deprecated in favour of `flwr run`, which cannot hand back a result, and the server
    # judges the models itself
    message = record.getMessage().lower()
    return "deprecated" not in message and "fraction_evaluate is set to 0.0" not in message
