"""Files that appear when they are whole, or not at all, and numbers that JSON has no form for."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write a file to, or make a folder at, which takes its name when the block ends.

    What was at ``path`` is replaced then; where the block fails it stays as it was, and nothing else is left.

    Args:
        path: in a folder that exists.
        durable: whether all of it is on the disk before it takes the name, so that it outlives a power cut.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)
    try:
        yield partial
        if durable:
            for written in (*partial.rglob("*"), partial):
                _flush(written)
        if partial.is_dir():
            _remove(path)
        partial.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all: see :func:`written_atomically`.

    Raises:
        OSError: if it cannot be written.
    """
    with written_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def json_text(content: Any) -> str:
    """Plain data as JSON text that ends in a new line: see :func:`finite`."""
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Plain data with lists for tuples, in which numbers that JSON has no form for (NaN, infinity) are None."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
