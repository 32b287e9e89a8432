"""What a dimension may hold: units as a whole, in rows or blocks, or as a piece of a concatenation."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.spec import Axis, Factor, Layout

MOST_PIECES = 4  # of a concatenation
MOST_ROWS = 16  # that may move apart


class Reading(NamedTuple):
    """A dimension of a tensor, or a piece of it: ``outer`` rows of ``size`` units of ``inner`` neighbouring entries."""

    key: str
    dim: int
    length: int
    size: int
    start: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + self.outer * self.size * self.inner

    def overlaps(self, other: "Reading") -> bool:
        """Whether some entries are of both."""
        same = (self.key, self.dim) == (other.key, other.dim)
        return same and self.start < other.stop and other.start < self.stop

    @property
    def rows(self) -> list["Reading"]:
        """Its rows, each on its own, if they are few."""
        if self.outer > MOST_ROWS:
            return [self]
        width = self.size * self.inner
        return [self._replace(start=self.start + row * width, outer=1) for row in range(self.outer)]

    def reordered(self, units: Tensor) -> Tensor:
        """The index along the whole dimension that puts the units in this order."""
        index = torch.arange(self.length)
        piece = index[self.start : self.stop].view(self.outer, self.size, self.inner)
        index[self.start : self.stop] = piece[:, units].flatten()
        return index

    def axis(self) -> Axis:
        """As a spec has it."""
        if self.size == self.length:
            return Axis(self.key, self.dim)
        rows, entries = Factor(self.dim, self.outer, self.size * self.inner), Factor(self.dim, self.inner)
        rest = (*[rows] * (self.outer > 1), *[entries] * (self.inner > 1))
        start = ((self.dim, self.start),) if self.start else ()
        return Axis(self.key, self.dim, Layout((Factor(self.dim, self.size, self.inner),), rest, start))


def wholes(lengths: Mapping[tuple[str, int], int], size: int) -> Iterator[Reading]:
    """Every way in which some dimension may hold so many units."""
    for (key, dim), length in lengths.items():
        rest, over = divmod(length, size)
        if not over:
            for outer in range(1, rest + 1):
                if not rest % outer:
                    yield Reading(key, dim, length, size, 0, outer, rest // outer)


def wholes_and_pieces(lengths: Mapping[tuple[str, int], int], size: int) -> Iterator[Reading]:
    """The same, and every piece of so many units that some dimension may hold beside others; nothing without pieces."""
    sizes = sorted({length for length in lengths.values() if length > 1})
    sums = {sum(chosen) for most in range(MOST_PIECES) for chosen in combinations_with_replacement(sizes, most)}
    pieces = [
        Reading(key, dim, length, size, start)
        for (key, dim), length in lengths.items()
        for start in sorted(sums)
        if length > size and length - start - size in sums
    ]
    return chain(wholes(lengths, size), pieces) if pieces else iter(())


def joined(group: Iterable[Reading], found: Collection[Reading]) -> Iterator[Reading]:
    """The axes of a group, or those of their rows that were found."""
    for axis in group:
        own = [row for row in axis.rows if row in found]
        yield from [axis] if len(own) == len(axis.rows) else own
