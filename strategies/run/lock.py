"""A folder belongs to one run at a time: a lock of the operating system, which a killed process cannot leave behind."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import WARNING
from pathlib import Path

from ..flower import log

try:
    import fcntl
except ImportError:  # not on Windows, where nothing keeps two runs apart but their identities
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the file ``.lock`` in it is removed at the end.

    Without ``fcntl``, or on a file system without locks (a warning says so), nothing is held.

    Raises:
        BlockingIOError: if another run holds it.
        OSError: if the file cannot be made.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it before sees that it is another file now
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                os.close(descriptor)
                raise BlockingIOError(*error.args) from None
            log(WARNING, "%s: no locks on this file system: let no second run use the folder (%s)", path, error)
            return descriptor
        with suppress(FileNotFoundError):  # who held it before has removed the file: it is another one now, or none
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
