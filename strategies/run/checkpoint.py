"""Checkpoints of a run: written so that a server killed at any moment goes on to the same model.

A checkpoint is a folder ``round-000007`` with ``arrays.safetensors`` (global model, the inner strategy's own arrays,
the nodes' permutations) and ``meta.json``. It is written beside its final place, flushed to the disk and then renamed:
there is never half of one under its name. The last two are kept; one that is damaged is passed over, one of another
model is refused.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common import log
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedrebasin import RebasinError
from fedrebasin.writing import written_atomically

VERSION = 1
KEPT = 2
ARRAYS, META = "arrays.safetensors", "meta.json"


class CheckpointError(RebasinError):
    """A checkpoint cannot be written, or is of another run."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Args:
        server_round: the round that was finished.
        tensors: by section (``global``, ``inner``, ``frames``), then by key.
        settings: plain JSON data of the strategy (beta, the form of the inner strategy's arrays).
        metrics: the training metrics of all rounds so far.
        random_state: of Python's and numpy's generators, from which nodes are sampled and noise is drawn.
    """

    server_round: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, Any]]
    random_state: Mapping[str, Any]


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically and remove all but the last two.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    final = folder / f"round-{checkpoint.server_round:06d}"
    flat = {
        f"{section}/{key}": tensor.detach().cpu().contiguous()
        for section, tensors in checkpoint.tensors.items()
        for key, tensor in tensors.items()
    }
    data = save(flat)
    meta = {
        "version": VERSION,
        "round": checkpoint.server_round,
        "sha256": hashlib.sha256(data).hexdigest(),
        "settings": dict(checkpoint.settings),
        "metrics": {str(number): dict(values) for number, values in checkpoint.metrics.items()},
        "random-state": dict(checkpoint.random_state),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(final, durable=True) as partial:
            partial.mkdir()
            (partial / ARRAYS).write_bytes(data)
            (partial / META).write_text(json.dumps(meta), encoding="utf-8")
        for old in _newest_first(folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: the checkpoint cannot be written: {error}") from None


def read_newest(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there is none.

    Args:
        folder: where checkpoints are.
        shapes: of the global model; a checkpoint of another one is refused.

    Raises:
        CheckpointError: naming the checkpoint that is of another model, or all of them if none is whole.
    """
    found = _newest_first(folder)
    damaged = []
    for path in found:
        try:
            checkpoint = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            damaged.append(f"{path.name} ({type(error).__name__}: {error})")
            log(WARNING, "checkpoint %s is damaged: %s", path, error)
            continue
        theirs = {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.get("global", {}).items()}
        if theirs != dict(shapes):
            different = sorted(key for key in {*theirs, *shapes} if theirs.get(key) != shapes.get(key))
            raise CheckpointError(
                f"{path}: a checkpoint of another model (it differs in {', '.join(different[:5])}); "
                "use another folder, or resume=False"
            )
        return checkpoint
    if damaged:
        raise CheckpointError(f"{folder}: no checkpoint is whole: {'; '.join(damaged)}; use resume=False to start over")
    return None


def random_state() -> dict[str, Any]:
    """The state of the generators that Flower's strategies draw from, as JSON data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Undo :func:`random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))


def _read(path: Path) -> Checkpoint:
    meta = json.loads((path / META).read_bytes())
    if meta["version"] != VERSION:
        raise ValueError(f"version {meta['version']} is not {VERSION}")
    data = (path / ARRAYS).read_bytes()
    if hashlib.sha256(data).hexdigest() != meta["sha256"]:
        raise ValueError(f"{ARRAYS} is not what was written")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(data).items():
        section, _, name = key.partition("/")
        tensors.setdefault(section, {})[name] = tensor
    metrics = {int(number): values for number, values in meta["metrics"].items()}
    return Checkpoint(int(meta["round"]), tensors, meta["settings"], metrics, meta["random-state"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-[0-9]*"), reverse=True)
