"""Brute force: all permutations of the entries of a small net's state dict that leave its function as it is.

Nothing here knows how nets are built: only their outputs are looked at. If a permutation p keeps the function, then
setting entry i apart from all others of its kind gives the same output as setting p(i) apart, and likewise for pairs.
So the symmetries are automorphisms of a coloured complete graph on the entries, which individualisation and refinement
(McKay's nauty) lists; each is then tried on random states, and only those that keep the function count. The order of
the group is the product of the orbits along a chain of stabilisers (Schreier and Sims).

What is found is always there. It is all there is, except where a net takes decisions at ties (argmax, top-k): these
hide symmetries at the states in which entries are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.tracing.fuzz_entries import Entries

Colours = NDArray[np.uint64]
TOLERANCE = 1e-8
STATES = 12  # random ones, where a net may take decisions by its entries
LARGEST_SEARCH = 3000


class Undecided(Exception):
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


def symmetries(entries: Entries, seed: int = 0) -> Symmetries:
    """All symmetries of a net, as permutations of its entries.

    Raises:
        Undecided: if there are too many candidates to try.
    """
    generator = torch.Generator().manual_seed(seed)
    live = _live(entries, generator)
    colours = _stable(entries, live, generator)
    _, cells, counts = np.unique(colours, return_inverse=True, return_counts=True)
    some = np.flatnonzero((counts[cells] > 1) & live.numpy())
    found = Symmetries(live)
    if some.size:
        _Search(entries, some, cells, found, generator).run()
    return found


def twins(entries: Entries, found: Symmetries, seed: int = 1) -> Tensor:
    """A number for each entry; entries of one tensor that can be swapped alone have the same.

    These are the entries that the function sees only the sum of (or another symmetric function), or not at all.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(STATES, entries.number, generator=generator, dtype=torch.float64)
    before = entries.outputs(u)
    owner, classes = entries.owner, torch.arange(entries.number)
    dead = torch.where(found.live, -1, owner)
    for which in range(int(owner.max()) + 1):
        some = torch.nonzero(dead == which).flatten()
        classes[some] = some[:1].expand_as(some)
    moving = torch.zeros_like(found.live)
    for image in found.generators:
        moving |= image != torch.arange(len(image))
    first, second = torch.combinations(torch.nonzero(moving).flatten(), 2).T
    same = owner[first] == owner[second]
    first, second = first[same], second[same]
    for row, expected in zip(u, before, strict=True):
        if not len(first):
            break
        rows = row.repeat(len(first), 1)
        rows.scatter_(1, first[:, None], row[second][:, None]).scatter_(1, second[:, None], row[first][:, None])
        kept = _close(entries.outputs(rows), expected[None])
        first, second = first[kept], second[kept]
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        classes[classes == classes[other]] = int(classes[one])
    return torch.unique(classes, return_inverse=True)[1]


def _random(entries: Entries, cells: NDArray[np.int64], generator: torch.Generator) -> Tensor:
    """A state in which entries of one colour are equal."""
    drawn = torch.rand(int(cells.max()) + 1, generator=generator, dtype=torch.float64)
    return drawn[torch.from_numpy(cells)]


def _apart(u: Tensor) -> Tensor:
    """Another number for each, far from the one it has; another integer too."""
    return (u + 0.5) % 1


def _live(entries: Entries, generator: torch.Generator) -> Tensor:
    live = torch.zeros(entries.number, dtype=torch.bool)
    for _ in range(STATES):
        rest = torch.nonzero(~live).flatten()
        if not len(rest):
            break
        u = torch.rand(entries.number, generator=generator, dtype=torch.float64)
        rows = u.repeat(len(rest), 1)
        rows.scatter_(1, rest[:, None], _apart(u)[rest][:, None])
        live[rest] = ~_close(entries.outputs(rows), entries.outputs(u[None]))
    return live


def _close(some: Tensor, others: Tensor) -> Tensor:
    size = others.abs().amax(-1).clamp(min=0.01)
    return ~((some - others).abs().amax(-1) > TOLERANCE * size)


def _summed(outputs: Tensor, weights: Tensor) -> NDArray[np.float64]:
    """One number for each row, by which rows are told apart."""
    values: NDArray[np.float64] = (outputs.nan_to_num(nan=7.7e3, posinf=9.9e5, neginf=-9.9e5) @ weights).numpy()
    return values


def _room(values: NDArray[np.float64]) -> float:
    """By how much equal values may differ."""
    return TOLERANCE * max(0.01, float(np.abs(values).max(initial=0)))


def _labels(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values that are equal but for rounding get the same number."""
    order = np.argsort(values, kind="stable")
    labels = np.empty(len(values), dtype=np.int64)
    labels[order] = np.concatenate(([0], np.cumsum(np.diff(values[order]) > _room(values))))
    return labels


def _stable(entries: Entries, live: Tensor, generator: torch.Generator) -> NDArray[np.int64]:
    """Colours of entries: different ones are told apart by setting one entry apart from those of its colour."""
    cells = np.where(live.numpy(), entries.owner.numpy(), -1)
    _, cells = np.unique(cells, return_inverse=True)
    steady = 0
    while steady < 2:
        u = _random(entries, cells, generator)
        rows = u.repeat(entries.number, 1)
        rows.diagonal().copy_(_apart(u))
        outputs = entries.outputs(rows)
        weights = torch.rand(outputs.shape[-1], generator=generator, dtype=torch.float64) + 0.5
        finer = np.stack((cells, _labels(_summed(outputs, weights))), 1)
        _, finer = np.unique(finer, axis=0, return_inverse=True)
        finer = finer.reshape(-1)
        steady = steady + 1 if finer.max() == cells.max() else 0
        cells = finer
    return cells


def _pairs(
    entries: Entries, some: NDArray[np.int64], cells: NDArray[np.int64], generator: torch.Generator
) -> Colours:
    """Colours of pairs of entries, by setting both apart; all alike where a net cannot run on many states at once."""
    found = np.zeros((len(some), len(some)), dtype=np.uint64)
    if entries.in_batches:
        u = _random(entries, cells, generator)
        apart = _apart(u)
        weights = torch.rand(entries.outputs(u[None]).shape[-1], generator=generator, dtype=torch.float64) + 0.5
        first, second = np.triu_indices(len(some), 1)
        values = []
        for at in range(0, len(first), 8192):
            rows = u.repeat(len(first[at : at + 8192]), 1)
            for one in (first, second):
                where = torch.from_numpy(some[one[at : at + 8192]])
                rows.scatter_(1, where[:, None], apart[where][:, None])
            values.append(_summed(entries.outputs(rows), weights))
        found[first, second] = found[second, first] = _labels(np.concatenate(values)) + 1
    return _mixed(found)


def _mixed(values: Colours) -> Colours:
    """A hash of each value (splitmix64)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class _Round:
    """One step of refinement: by the colours of all pairs, or by outputs with one entry set apart (with its labels)."""

    values: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None


class _Search:
    """Individualisation and refinement along a chain of base points.

    The first way down the chain (left) is taken once; every candidate for another image of a base point (right) is
    refined by the same rounds, and given up when its colours differ.
    """

    def __init__(
        self,
        entries: Entries,
        some: NDArray[np.int64],
        cells: NDArray[np.int64],
        found: Symmetries,
        generator: torch.Generator,
    ) -> None:
        self.entries, self.some, self.found = entries, torch.from_numpy(some), found
        self.states = torch.rand(STATES, entries.number, generator=generator, dtype=torch.float64)
        self.before = entries.outputs(self.states)
        self.weights = torch.rand(self.before.shape[-1], generator=generator, dtype=torch.float64) + 0.5
        self.pairs = _pairs(entries, some, cells, generator)
        self.nodes = 0
        self.base: list[int] = []
        colours, _ = self._refined(_mixed(cells[some].astype(np.uint64)))
        self.path: list[Colours] = [colours]
        self.rounds: list[list[_Round]] = []
        while (point := _next(self.path[-1])) is not None:
            colours, rounds = self._refined(_set_apart(self.path[-1], point, len(self.base)))
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

    def _extended(self, depth: int, colours: Colours, candidate: int) -> NDArray[np.int64] | None:
        """A symmetry that sends the base point at this depth to the candidate, if there is one."""
        self.nodes += 1
        if self.nodes > LARGEST_SEARCH:
            raise Undecided
        after = _set_apart(colours, candidate, depth)
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

    def _holds(self, image: NDArray[np.int64]) -> bool:
        moved = self.states[:, self._of_all(image)]
        return bool(_close(self.entries.outputs(moved), self.before).all())

    def _of_all(self, image: NDArray[np.int64]) -> Tensor:
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
            return _mixed(colours + _mixed(self.pairs ^ colours[None, :]).sum(1, dtype=np.uint64))

    def _by_outputs(self, colours: Colours, left: _Round | None = None) -> tuple[Colours, _Round]:
        """Told apart by what the net gives where entries of one colour are equal and one of them is set apart."""
        u = self.states[0].clone()
        u[self.some] = torch.from_numpy((colours >> np.uint64(11)).astype(np.float64) / 2**53)
        rows = u.repeat(len(self.some), 1)
        rows.scatter_(1, self.some[:, None], _apart(u)[self.some][:, None])
        values = _summed(self.entries.outputs(rows), self.weights)
        if left is None:
            left = _Round(values, _labels(values))
        assert left.values is not None
        assert left.labels is not None
        nearest = np.abs(left.values[:, None] - values[None, :]).argmin(0)
        labels = np.where(np.abs(left.values[nearest] - values) <= 2 * _room(left.values), left.labels[nearest], -1)
        with np.errstate(over="ignore"):
            return _mixed(colours + _mixed((labels + 1).astype(np.uint64))), left


def _number(colours: Colours) -> int:
    return len(np.unique(colours))


def _next(colours: Colours) -> int | None:
    """An entry of the smallest colour that has several."""
    _, where, counts = np.unique(colours, return_inverse=True, return_counts=True)
    sizes = counts[where.reshape(-1)]
    several = np.flatnonzero(sizes > 1)
    return int(several[np.argmin(sizes[several])]) if several.size else None


def _set_apart(colours: Colours, point: int, depth: int) -> Colours:
    found = colours.copy()
    found[point : point + 1] = _mixed(found[point : point + 1] ^ np.uint64(depth + 1))
    return found


def _unite(orbit: NDArray[np.int64], image: NDArray[np.int64]) -> None:
    """Join the orbits that a permutation connects, in place."""
    for one, other in enumerate(image):
        if orbit[one] != orbit[other]:
            orbit[orbit == orbit[other]] = orbit[one]
