"""The search for the symmetries of a net: individualisation and refinement along a chain of stabilisers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.tracing.fuzz_colours import (
    STATES,
    Cells,
    Colours,
    close,
    labelled,
    mixed,
    pair_colours,
    room,
    set_apart,
    summed,
)
from tests.tracing.fuzz_entries import INPUTS, Entries

LARGEST_SEARCH = 3000


class UndecidedError(Exception):
    """The search would take too long."""


@dataclass
class Symmetries:
    """The group of all permutations of live entries that keep the function.

    Args:
        orbits: the sizes of the orbits along the chain of stabilisers; the order of the group is their product.
        generators: permutations of all entries, ``moved[p] = values``.
        live: the entries that the function depends on.
    """

    live: Tensor
    orbits: list[int] = field(default_factory=list)
    generators: list[Tensor] = field(default_factory=list)

    @property
    def log10(self) -> float:
        """log10 of the order of the group."""
        return math.fsum(map(math.log10, self.orbits))


@dataclass(frozen=True)
class _Round:
    """One step of refinement: by the colours of all pairs, or by outputs with one entry set apart (with its labels)."""

    values: NDArray[np.float64] | None = None
    labels: Cells | None = None


class Search:
    """Individualisation and refinement along a chain of base points.

    The first way down the chain (left) is taken once; every candidate for another image of a base point (right) is
    refined by the same rounds, and given up when its colours differ.
    """

    def __init__(
        self,
        entries: Entries,
        some: Cells,
        cells: Cells,
        found: Symmetries,
        generator: torch.Generator,
    ) -> None:
        self.entries, self.some, self.found = entries, torch.from_numpy(some), found
        self.states = torch.rand(STATES, entries.number, generator=generator, dtype=torch.float64)
        self.before = entries.outputs(self.states, INPUTS)
        self.weights = (
            torch.rand(entries.outputs(self.states[:1]).shape[-1], generator=generator, dtype=torch.float64) + 0.5
        )
        self.pairs = pair_colours(entries, some, cells, generator)
        self.nodes = 0
        self.base: list[int] = []
        colours, _ = self._refined(mixed(cells[some].astype(np.uint64)))
        self.path: list[Colours] = [colours]
        self.rounds: list[list[_Round]] = []
        while (point := _next(self.path[-1])) is not None:
            colours, rounds = self._refined(_individual(self.path[-1], point, len(self.base)))
            self.base.append(point)
            self.path.append(colours)
            self.rounds.append(rounds)

    def run(self) -> None:
        """Fill in the orbits and the generators, the deepest stabiliser first."""
        orbit = np.arange(len(self.some))
        for depth in reversed(range(len(self.base))):
            point, colours = self.base[depth], self.path[depth]
            tried: set[int] = set()
            for candidate in np.flatnonzero(colours == colours[point]):
                if orbit[candidate] == orbit[point] or int(orbit[candidate]) in tried:
                    continue
                self.nodes = 0
                image = self._extended(depth, colours, int(candidate))
                if image is None:
                    tried.add(int(orbit[candidate]))
                    continue
                _unite(orbit, image)
                tried = {int(orbit[each]) for each in tried}
                self.found.generators.append(self._of_all(image))
            self.found.orbits.append(int((orbit == orbit[point]).sum()))

    def _extended(self, depth: int, colours: Colours, candidate: int) -> Cells | None:
        """A symmetry that sends the base point at this depth to the candidate, if there is one."""
        self.nodes += 1
        if self.nodes > LARGEST_SEARCH:
            raise UndecidedError
        after = _individual(colours, candidate, depth)
        for each in self.rounds[depth]:
            after = self._by_pairs(after) if each.values is None else self._by_outputs(after, each)[0]
        left = self.path[depth + 1]
        here, there = np.argsort(left, kind="stable"), np.argsort(after, kind="stable")
        if not np.array_equal(left[here], after[there]):
            return None
        if depth + 1 == len(self.base):
            image = np.empty(len(left), dtype=np.int64)
            image[here] = there
            return image if self._holds(image) else None
        point = self.base[depth + 1]
        for following in np.flatnonzero(after == left[point]):
            image = self._extended(depth + 1, after, int(following))
            if image is not None:
                return image
        return None

    def _holds(self, image: Cells) -> bool:
        moved = self.states[:, self._of_all(image)]
        return bool(close(self.entries.outputs(moved, INPUTS), self.before).all())

    def _of_all(self, image: Cells) -> Tensor:
        found = torch.arange(self.entries.number)
        found[self.some[torch.from_numpy(image)]] = self.some
        return found

    def _refined(self, colours: Colours) -> tuple[Colours, list[_Round]]:
        """The colours, finer until nothing tells more entries apart, and the rounds that made them so."""
        rounds: list[_Round] = []
        while True:
            finer = self._by_pairs(colours)
            if _number(finer) > _number(colours):
                colours = finer
                rounds.append(_Round())
                continue
            if _number(colours) == len(colours):
                return colours, rounds
            finer, each = self._by_outputs(colours)
            if _number(finer) == _number(colours):
                return colours, rounds
            colours = finer
            rounds.append(each)

    def _by_pairs(self, colours: Colours) -> Colours:
        with np.errstate(over="ignore"):
            return mixed(colours + mixed(self.pairs ^ colours[None, :]).sum(1, dtype=np.uint64))

    def _by_outputs(self, colours: Colours, left: _Round | None = None) -> tuple[Colours, _Round]:
        """Told apart by what the net gives where entries of one colour are equal and one of them is set apart."""
        u = self.states[0].clone()
        u[self.some] = torch.from_numpy((colours >> np.uint64(11)).astype(np.float64) / 2**53)
        rows = u.repeat(len(self.some), 1)
        rows.scatter_(1, self.some[:, None], set_apart(u)[self.some][:, None])
        values = summed(self.entries.outputs(rows), self.weights)
        if left is None:
            left = _Round(values, labelled(values))
        assert left.values is not None
        assert left.labels is not None
        nearest = np.abs(left.values[:, None] - values[None, :]).argmin(0)
        labels = np.where(np.abs(left.values[nearest] - values) <= 2 * room(left.values), left.labels[nearest], -1)
        with np.errstate(over="ignore"):
            return mixed(colours + mixed((labels + 1).astype(np.uint64))), left


def _number(colours: Colours) -> int:
    return len(np.unique(colours))


def _next(colours: Colours) -> int | None:
    """An entry of the smallest colour that has several."""
    _, where, counts = np.unique(colours, return_inverse=True, return_counts=True)
    sizes = counts[where.reshape(-1)]
    several = np.flatnonzero(sizes > 1)
    return int(several[np.argmin(sizes[several])]) if several.size else None


def _individual(colours: Colours, point: int, depth: int) -> Colours:
    found = colours.copy()
    found[point : point + 1] = mixed(found[point : point + 1] ^ np.uint64(depth + 1))
    return found


def _unite(orbit: Cells, image: Cells) -> None:
    """Join the orbits that a permutation connects, in place."""
    for one, other in enumerate(image):
        if orbit[one] != orbit[other]:
            orbit[orbit == orbit[other]] = orbit[one]
