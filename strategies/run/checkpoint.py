"""Checkpoints of a run: written so that a server killed at any moment goes on to the same model.

A checkpoint is a folder ``round-000007`` with ``arrays.safetensors`` (global model, the inner strategy's own arrays,
the nodes' permutations), ``meta.json`` and ``SHA256SUMS``, the checksums of both, which every format from 2 on has. It
is written beside its final place, flushed to the disk and then renamed: there is never half of one under its name. The
last two are kept; one that is damaged is passed over, one of another model, spec, strategy or newer format is refused.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load, save
from torch import Tensor

from fedrebasin import RebasinError
from fedrebasin.errors import one_line
from fedrebasin.writing import written_atomically

from ..flower import log

VERSION = 2
KEPT = 2
ARRAYS, META, SUMS = "arrays.safetensors", "meta.json", "SHA256SUMS"

Built = TypeVar("Built")


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
        made_by: plain JSON data that says of which run, spec and strategy it is; None in format 1, which did not say.
    """

    server_round: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, Any]]
    random_state: Mapping[str, Any]
    made_by: Mapping[str, Any] | None = field(default=None)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically and remove the older ones but for the last.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    final = folder / f"round-{checkpoint.server_round:06d}"
    flat = {
        f"{section}/{key}": tensor.detach().cpu().contiguous()
        for section, tensors in checkpoint.tensors.items()
        for key, tensor in tensors.items()
    }
    meta = {
        "version": VERSION,
        "round": checkpoint.server_round,
        "made-by": checkpoint.made_by,
        "settings": dict(checkpoint.settings),
        "metrics": {str(number): dict(values) for number, values in checkpoint.metrics.items()},
        "random-state": dict(checkpoint.random_state),
    }
    files = {ARRAYS: save(flat), META: json.dumps(meta).encode()}
    files[SUMS] = _sums(files[ARRAYS], files[META])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(final, durable=True) as partial:
            partial.mkdir()
            for name, data in files.items():
                (partial / name).write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"{folder}: the checkpoint cannot be written: {one_line(error)}") from None
    older = [path for path in newest_first(folder) if _round(path) < checkpoint.server_round]
    for old in older[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def read_newest(folder: Path, build: Callable[[Checkpoint], Built]) -> Built | None:
    """What is built of the newest checkpoint that is whole, None if there is no checkpoint.

    Args:
        folder: where checkpoints are.
        build: it changes nothing; a ``CheckpointError`` of it refuses the checkpoint, any other error says that it is
            damaged.

    Raises:
        CheckpointError: naming the checkpoint that is refused, or all of them if none is whole.
    """
    damaged = []
    for path in newest_first(folder):
        try:
            return build(read(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; use another folder") from None
        except Exception as error:  # parsers of what may be anything fail in as many ways as there are
            damaged.append(f"{path.name} ({one_line(error)})")
            log(WARNING, "checkpoint %s is damaged: %s", path, one_line(error))
    if damaged:
        raise CheckpointError(f"{folder}: no checkpoint is whole: {'; '.join(damaged)}; use another folder")
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder ``round-N``.

    Raises:
        CheckpointError: if a newer version has written it.
        Exception: of any kind, if it is not whole.
    """
    data, text = (path / ARRAYS).read_bytes(), (path / META).read_bytes()
    summed = (path / SUMS).exists()
    if summed and (path / SUMS).read_bytes() != _sums(data, text):
        raise ValueError(f"{ARRAYS} or {META} is not what was written")
    meta = json.loads(text)
    version = meta["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"version {version!r}")
    if version > VERSION:
        raise CheckpointError(f"a checkpoint of format {version}, which this version of fedrebasin cannot read")
    if version > 1 and not summed:
        raise ValueError(f"{SUMS} is missing")
    if version == 1 and hashlib.sha256(data).hexdigest() != meta["sha256"]:
        raise ValueError(f"{ARRAYS} is not what was written")
    if type(meta["round"]) is not int or meta["round"] != _round(path):
        raise ValueError(f"{META} is of round {meta['round']!r}")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load(data).items():
        section, _, name = key.partition("/")
        tensors.setdefault(section, {})[name] = tensor
    metrics = {int(number): dict(values) for number, values in meta["metrics"].items()}
    made_by = dict(meta["made-by"]) if version > 1 else None
    return Checkpoint(meta["round"], tensors, dict(meta["settings"]), metrics, dict(meta["random-state"]), made_by)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder."""
    return sorted((path for path in folder.glob("round-*") if _round(path) >= 0), key=_round, reverse=True)


def _round(path: Path) -> int:
    """The round that a folder's name says, -1 if it says none."""
    found = re.fullmatch("round-([0-9]+)", path.name)
    return int(found[1]) if found else -1


def _sums(data: bytes, text: bytes) -> bytes:
    """What ``sha256sum --check`` reads."""
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in ((ARRAYS, data), (META, text))
    ).encode()
