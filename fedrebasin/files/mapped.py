"""State dicts in mapped files, one or several: what has been looked at can leave memory again."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedrebasin.state import tied_keys

_WINDOW = 2**27


class MappedState(Mapping[str, Tensor]):
    """A state dict whose tensors lie in mapped files.

    After a window's worth of tensors has been looked at, their pages leave memory; they come back from the file when
    they are needed. Tensors that were handed out stay valid throughout. Nothing may be written to them.

    Args:
        tensors: of these files.
        paths: of the file, or of all.
        window: bytes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], paths: Path | Sequence[Path], window: int = _WINDOW) -> None:
        self._tensors = dict(tensors)
        self.paths = (paths,) if isinstance(paths, Path) else tuple(paths)
        self._window = window
        self._looked_at = 0
        self._pages = _mapped_pages(self._tensors.values(), self.paths)

    def __getitem__(self, key: str) -> Tensor:
        """The tensor; what was looked at before may leave memory."""
        tensor = self._tensors[key]
        self._looked_at += tensor.nbytes
        if self._looked_at > self._window:
            self.release()
            self._looked_at = tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Of all tensors, tied ones once."""
        tied = [key for keys in tied_keys(self._tensors) for key in keys[1:]]
        return sum(tensor.nbytes for tensor in self._tensors.values()) - sum(self._tensors[key].nbytes for key in tied)

    def release(self) -> None:
        """Let the pages leave memory: those of the file only, and of it only those that these tensors lie on."""
        if self._pages:
            libc = ctypes.CDLL(None, use_errno=True)
            for start, end in self._pages:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def renamed(self, names: Mapping[str, str]) -> MappedState:
        """The same tensors under other names; ``names`` maps the new ones to the old ones."""
        return MappedState({new: self._tensors[old] for new, old in names.items()}, self.paths, self._window)


def _mapped_pages(tensors: Iterable[Tensor], paths: Iterable[Path]) -> list[tuple[int, int]]:
    """The address ranges of the pages that these tensors occupy in mappings of the files; none where that is unknown.

    Only such pages may be let go: those of other memory would come back as zeros.
    """
    if not sys.platform.startswith("linux"):
        return []
    real = {os.path.realpath(path) for path in paths}
    mappings = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in real:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            mappings.append((start, end))
    pages = []
    for tensor in tensors:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for start, end in mappings:
            if tensor.is_contiguous() and tensor.nbytes and start <= first and last <= end:
                size = mmap.PAGESIZE
                pages.append((first // size * size, min(-(-last // size) * size, end)))
    return pages
