"""A Ray cluster that runs already: reached by its address, and asked whether it has room."""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedrebasin import RebasinError
from fedrebasin.errors import one_line

ANSWER_SECONDS = 10.0


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster; a connection that this process has already is used and kept.

    Args:
        address: ``auto`` (the cluster that this machine is a node of) or ``HOST:PORT``.

    Raises:
        RebasinError: if Ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise RebasinError('Ray is not installed: pip install "flwr[simulation]"') from None
    if ray.is_initialized():
        yield ray
        return
    try:
        _knock(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what tasks without a GPU will see in a later Ray
            ray.init(address=address, include_dashboard=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise RebasinError(f"no Ray cluster at {address}: {one_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail in seconds where nobody listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


def demand_room(ray: Any, resources: Mapping[str, float]) -> None:
    """Refuse what no node of the cluster has room for: it would wait for ever.

    Args:
        ray: connected.
        resources: ``num_cpus`` and ``num_gpus``.

    Raises:
        RebasinError: with what the nodes have.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    cpus, gpus = resources["num_cpus"], resources["num_gpus"]
    if not any(has_cpus >= cpus and has_gpus >= gpus for has_cpus, has_gpus in sizes):
        each = ", ".join(f"{has_cpus:g} and {has_gpus:g}" for has_cpus, has_gpus in sizes)
        raise RebasinError(f"no node of the Ray cluster has {cpus:g} cores and {gpus:g} GPUs; they have {each}")
