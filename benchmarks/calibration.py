"""Calibration and merging from sums: the strategies of ``fedrebasin compare`` over three seeds, on skewed and even splits.

Clients are trained once and kept in ``--cache``; rows that were measured are kept there too, so that the script can be
stopped at any time and goes on where it was.

    python benchmarks/calibration.py train --data-dir DATA --cache CACHE
    python benchmarks/calibration.py merge --data-dir DATA --cache CACHE
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fedrebasin.simulations import Federation, SimulationConfig

State = dict[str, Tensor]
SEEDS = (0, 1, 2)
FASHION = {
    "dataset": "fashion-mnist",
    "local_epochs": 8,
    "batch_size": 128,
    "optimizer": "adamw",
    "weight_decay": 1e-4,
}
SPLITS: dict[str, dict[str, object]] = {
    "dirichlet": {**FASHION, "clients": 8, "partition": "dirichlet", "alpha": 0.5},
    "digits": {"clients": 8, "partition": "dirichlet", "alpha": 0.3, "optimizer": "adamw", "weight_decay": 1e-4},
    "iid": {**FASHION, "clients": 4},
}


def federation_of(split: str, seed: int, data_dir: str) -> Federation:
    """One of ``SPLITS``."""
    options = dict(SPLITS[split])
    if "dataset" in options:
        options["data_dir"] = data_dir
    return Federation(SimulationConfig(seed=seed, **options))  # type: ignore[arg-type]


def trained(federation: Federation, folder: Path) -> Iterator[State]:
    """The clients' models, trained or from the cache."""
    folder.mkdir(parents=True, exist_ok=True)
    for partition in range(federation.config.clients):
        file = folder / f"client-{partition}.pt"
        if not file.exists():
            model = federation.client_model(partition, 1)
            loss, examples = federation.train_client(model, partition, 1)
            print(f"{folder.name}: client {partition}, {examples} examples, loss {loss:.3f}", flush=True)
            torch.save(model.state_dict(), file)
        yield torch.load(file, weights_only=True)


def main() -> None:
    """Read the arguments and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "merge"])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--splits", default=",".join(SPLITS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for split in arguments.splits.split(","):
        for seed in SEEDS:
            federation = federation_of(split, seed, arguments.data_dir)
            for _ in trained(federation, arguments.cache / f"{split}-{seed}"):
                pass


if __name__ == "__main__":
    main()
