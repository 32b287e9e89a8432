"""Where a federation runs: inside this process, or in Flower's own simulation engine."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrebasin import RebasinError
from fedrebasin.errors import choose, one_line

from .cluster import connected, demand_room
from .inline import run_inline

ENGINES = ("inline", "flower")
RESOURCES = ("num_cpus", "num_gpus")
CLIENTS_TIMEOUT = 120.0

T = TypeVar("T")


def demand_resources(engine: str, resources: Mapping[str, float] | None, ray: str | None = None) -> None:
    """Refuse resources of a client that nobody would heed or that are unknown.

    Args:
        engine: one of ``ENGINES``.
        resources: ``num_cpus`` and ``num_gpus``.
        ray: address of a cluster, where whole comparisons are run with them too.

    Raises:
        RebasinError: with what is known.
    """
    if not resources:
        return
    if engine != "flower" and ray is None:
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
    ray: str | None = None,
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
        ray: address of a Ray cluster for the clients of Flower's engine, see :func:`connected`; without one Flower
            starts Ray on this machine.

    Raises:
        RebasinError: if the engine does not know a resource, or it fails itself, as where no client has room.
        Exception: whatever ``work`` raises.
    """
    choose("engine", engine, ENGINES)
    demand_resources(engine, client_resources)
    if ray is not None and engine != "flower":
        raise RebasinError(f"a Ray cluster is for engine flower: {engine} trains one client after the other")
    server_app, results, errors, over = ServerApp(), list[T](), list[Exception](), Event()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            wait_for_clients(grid, clients)
            results.append(work(_until(over, grid)))
        except Exception as error:
            errors.append(error)
            raise

    with _quiet_flower():
        if engine == "inline":
            run_inline(server_app, client_app, clients)
        else:
            resources = {"num_cpus": 1.0, "num_gpus": 1 / clients if gpu else 0.0} | dict(client_resources or {})
            try:
                _simulate(server_app, client_app, clients, resources, ray)
            except RuntimeError as error:
                raise errors[0] if errors else RebasinError(f"Flower's engine: {_root(error)}") from error
            finally:
                over.set()
    return results[0]


def _simulate(
    server_app: ServerApp, client_app: ClientApp, clients: int, resources: Mapping[str, float], ray: str | None
) -> None:
    from flwr.simulation import run_simulation

    config: dict[str, Any] = {"client_resources": dict(resources)}
    if ray is not None:
        config["init_args"] = {"address": ray}
        with connected(ray) as cluster:  # fails in one line where Flower's engine would crash
            demand_room(cluster, resources)
    run_simulation(server_app, client_app, clients, backend_config=config)


def _until(over: Event, grid: Grid) -> Grid:
    """The grid, which gives up when the engine is over: a ServerApp would wait for its clients for ever."""
    pull = grid.pull_messages

    def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
        if over.is_set():
            raise RebasinError("Flower's engine ended before the clients had answered")
        return pull(message_ids)

    grid.pull_messages = pull_messages  # type: ignore[method-assign]
    return grid


def _root(error: BaseException) -> str:
    """What an error began with, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


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
