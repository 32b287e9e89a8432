"""Files that torch.save wrote before 1.6: a few pickles, then the numbers."""

import mmap
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrebasin.errors import DataError, one_line

PICKLES = 4  # a magic number, a version, the machine, and what was saved


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file as torch may read it: no read gives, or makes room for, more bytes than there are.

    Raises:
        DataError: if it speaks of storages that are larger than itself.
        UnpicklingError: if it is no such file, with the first thing that it asks for; ValueError, if with none.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        asked: list[str] = []
        try:
            for _ in range(PICKLES):
                _Sizes(content, len(content), asked).load()
        except DataError:
            raise
        except Exception as error:  # it is no such file, and torch does not get to see it
            kind = pickle.UnpicklingError if asked else ValueError
            raise kind(f"GLOBAL {asked[0]}" if asked else one_line(error)) from None
        content.seek(0)
        yield content


class _Inert:
    """Stands for whatever a pickle names: nothing of it is found, called or kept."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Sizes(pickle._Unpickler):  # in Python: the other makes room for what it is told
    """Reads a pickle for the sizes of its storages only, which torch makes room for before it reads them."""

    def __init__(self, file: mmap.mmap, most: int, asked: list[str]) -> None:
        super().__init__(file)
        self._most, self._asked = most, asked
        self._seen: set[Any] = set()

    def find_class(self, module: str, name: str) -> Any:
        self._asked.append(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        _, _, key, _, elements, *_ = pid  # ("storage", type, key, device, elements, view)
        if key in self._seen:  # tied tensors
            return _Inert()
        self._seen.add(key)
        if type(elements) is not int or not 0 <= elements <= self._most:
            raise DataError(f"a storage of {elements!r:.40} elements, where the file has {self._most} bytes")
        self._most -= elements
        return _Inert()
