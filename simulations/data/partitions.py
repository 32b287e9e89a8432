"""Partitions: small pure functions from labels to one index array for each client.

Every example goes to exactly one client and every client gets at least one.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrebasin.errors import DataError

Indices = NDArray[np.int64]
ATTEMPTS = 100


def iid(labels: Indices, clients: int, *, seed: int = 0) -> list[Indices]:
    """Equal parts of a random order."""
    _demand_enough(labels, clients)
    return _sorted_parts(np.array_split(np.random.default_rng(seed).permutation(len(labels)), clients))


def dirichlet(labels: Indices, clients: int, *, alpha: float = 0.5, seed: int = 0) -> list[Indices]:
    """Each class shared out in proportions drawn from a symmetric Dirichlet distribution (Hsu et al., 2019).

    Args:
        labels: shape ``(n,)``.
        clients: number of parts.
        alpha: concentration; small is uneven.
        seed: of the draw, which is repeated until no client is left without data.

    Raises:
        DataError: if a client is left without data 100 times.
    """
    _demand_enough(labels, clients)
    generator = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(generator.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).round().astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(map(len, joined)):
            return _sorted_parts(joined)
    raise DataError(f"partition dirichlet: alpha {alpha} left one of {clients} clients without data {ATTEMPTS} times")


def shards(labels: Indices, clients: int, *, per_client: int = 2, seed: int = 0) -> list[Indices]:
    """The examples sorted by label, cut into equal shards, ``per_client`` of them drawn by each (McMahan et al., 2017).

    Raises:
        DataError: if there are fewer examples than shards.
    """
    _demand_enough(labels, clients * per_client)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, clients * per_client)
    drawn = generator.permutation(clients * per_client).reshape(clients, per_client)
    return _sorted_parts([np.concatenate([pieces[shard] for shard in row]) for row in drawn])


def label_skew(labels: Indices, clients: int, *, major: float = 0.8, seed: int = 0) -> list[Indices]:
    """Every client has most of one block of classes and a little of the others (Git Re-Basin, section 5.4).

    There, with two clients: A has 20 % of the examples of the first half of the classes and 80 % of the second half, B
    the rest. With n clients the classes form n blocks; client i has 80 % of block n - 1 - i, and the others share its
    remaining 20 % equally.

    Raises:
        DataError: if there are fewer classes than clients.
    """
    classes = np.unique(labels)
    if not 2 <= clients <= len(classes):
        raise DataError(
            f"partition label-skew: {clients} clients where the data has {len(classes)} classes (2 or more)"
        )
    generator = np.random.default_rng(seed)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for block, names in enumerate(np.array_split(classes, clients)):
        members = generator.permutation(np.flatnonzero(np.isin(labels, names)))
        owner = clients - 1 - block
        cut = round(major * len(members))
        parts[owner].append(members[:cut])
        others = [client for client in range(clients) if client != owner]
        for client, piece in zip(others, np.array_split(members[cut:], clients - 1), strict=True):
            parts[client].append(piece)
    return _sorted_parts([np.concatenate(part) for part in parts])


def from_partitioner(labels: Indices, clients: int, partitioner: Any) -> list[Indices]:
    """The parts that a partitioner of flwr-datasets makes; its column of labels is called ``label``.

    Args:
        labels: shape ``(n,)``.
        clients: must be the partitioner's ``num_partitions``.
        partitioner: one whose ``dataset`` has not been assigned yet.

    Raises:
        DataError: if it makes another number of parts.
    """
    table = importlib.import_module("datasets").Dataset
    partitioner.dataset = table.from_dict({"index": list(range(len(labels))), "label": labels.tolist()})
    if partitioner.num_partitions != clients:
        raise DataError(f"the partitioner makes {partitioner.num_partitions} parts for {clients} clients")
    parts = [np.asarray(partitioner.load_partition(i)["index"], np.int64) for i in range(clients)]
    return _sorted_parts(parts)


def make_partition(labels: Indices, name: str, clients: int, alpha: float, seed: int) -> list[Indices]:
    """The partition with this name: iid, dirichlet, shards or label-skew."""
    makers: dict[str, Callable[[], list[Indices]]] = {
        "iid": lambda: iid(labels, clients, seed=seed),
        "dirichlet": lambda: dirichlet(labels, clients, alpha=alpha, seed=seed),
        "shards": lambda: shards(labels, clients, seed=seed),
        "label-skew": lambda: label_skew(labels, clients, seed=seed),
    }
    return makers[name]()


def _sorted_parts(parts: list[Indices]) -> list[Indices]:
    return [np.sort(part) for part in parts]


def _demand_enough(labels: Indices, parts: int) -> None:
    if len(labels) < parts:
        raise DataError(f"{len(labels)} examples cannot be split into {parts} parts")
