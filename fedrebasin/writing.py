"""Files that appear when they are whole, or not at all, and numbers that JSON has no form for."""

import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any


@contextmanager
def written_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write a file to, or make a folder at, which takes its name when the block ends.

    What was at ``path`` is replaced then; where the block fails it stays as it was, and nothing else is left. What
    killed processes have left in its folder is removed: names say whose it is, and what is of a process that lives, or
    of another machine, stays.

    Args:
        path: in a folder that exists.
        durable: whether all of it is on the disk before it takes the name, so that it outlives a power cut.

    Raises:
        OSError: if it cannot be written.
    """
    _sweep(path)
    partial = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.partial")
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


def _sweep(path: Path) -> None:
    """Remove what processes that are gone have begun to write beside ``path``."""
    name = re.compile(rf"\..+\.{_machine()}-([0-9]+)\.partial")
    for beside in path.parent.glob(".*.partial"):
        if (found := name.fullmatch(beside.name)) and not _lives(int(found[1])):
            with suppress(OSError):  # another one removes it as well, or it is somebody else's
                _remove(beside)


@cache
def _machine() -> str:
    """What tells this machine, or this container, from others that may share the folder: they number processes anew."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    if os.name == "nt":  # there is nothing to ask with that would not end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


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
