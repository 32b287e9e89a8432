"""How many of a net's symmetries a spec has, against the true number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec
from tests.tracing.fuzz_entries import Entries, Slot
from tests.tracing.fuzz_search import Symmetries, UndecidedError
from tests.tracing.fuzz_symmetries import symmetries, twins

Images = NDArray[np.int64]


@dataclass
class Group:
    """A permutation group by generators: a chain of stabilisers (Schreier and Sims)."""

    degree: int
    point: int = -1
    generators: list[Images] = field(default_factory=list)
    carriers: dict[int, Images] = field(default_factory=dict)
    rest: Group | None = None

    @property
    def log10(self) -> float:
        """log10 of the order."""
        below = 0.0 if self.rest is None else self.rest.log10
        return below + (math.log10(len(self.carriers)) if self.carriers else 0.0)

    def sifted(self, image: Images) -> Images:
        """What is left of a permutation when members are taken off; the identity if it is a member."""
        if self.rest is None or int(image[self.point]) not in self.carriers:
            return image
        carrier = self.carriers[int(image[self.point])]
        return self.rest.sifted(np.argsort(carrier)[image])

    def __contains__(self, image: Images) -> bool:
        return bool((self.sifted(image) == np.arange(self.degree)).all())

    def add(self, image: Images) -> None:
        """Make the group that has this permutation as well."""
        if image in self:
            return
        if self.rest is None:
            self.point = int(np.flatnonzero(image != np.arange(self.degree))[0])
            self.carriers = {self.point: np.arange(self.degree)}
            self.rest = Group(self.degree)
        self.generators.append(image)
        fresh = [(point, self.generators[-1:]) for point in list(self.carriers)]
        while fresh:
            point, generators = fresh.pop()
            for generator in generators:
                carried = generator[self.carriers[point]]
                target = int(carried[self.point])
                if target in self.carriers:
                    self.rest.add(np.argsort(self.carriers[target])[carried])
                else:
                    self.carriers[target] = carried
                    fresh.append((target, self.generators))


@dataclass(frozen=True)
class Comparison:
    """The symmetries of a net and those of a spec, both without what the function does not see.

    Args:
        true: log10 of the number of symmetries there are.
        found: log10 of the number of those that the spec has.
        missing: symmetries that the spec does not have, in words, without those that fall to a known limit.
        limits: the known limits that the others fall to.
        extra: whether the spec has one that the search did not find.
    """

    true: float
    found: float
    missing: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    extra: bool = False


def compared(entries: Entries, spec: PermutationSpec) -> Comparison:
    """Count; entries that the function sees only the sum of, or not at all, are not told apart.

    Raises:
        UndecidedError: if the search takes too long.
    """
    everything = symmetries(entries)
    classes = twins(entries, everything).numpy()
    number = int(classes.max()) + 1
    first = np.unique(classes, return_index=True)[1]
    spec_group, true_group = Group(number), Group(number)

    def on_classes_of(image: Images) -> Images:
        found = classes[image]
        if not np.array_equal(found, found[first][classes]):
            raise UndecidedError
        return found[first]

    for image in members(entries, spec):
        spec_group.add(on_classes_of(image))
    found = spec_group.log10
    others, limits = [], []
    for image in everything.generators:
        on_classes = on_classes_of(image.numpy())
        true_group.add(on_classes)
        if on_classes not in spec_group:
            limit = limit_of(entries, spec, image, everything)
            if limit is None:
                others.append((image, on_classes))
            else:
                limits.append(limit)
                spec_group.add(on_classes)
    missing = [in_words(entries, image) for image, on_classes in others if on_classes not in spec_group]
    extra = any(one not in true_group for one in spec_group.generators)
    return Comparison(true_group.log10, found, tuple(missing), tuple(limits), extra)


MIRRORED = "mirrored or turned orders"
NUMBERED = "places numbered by constants"
REPORTED = {
    "order in time": MIRRORED,
    "order matters": MIRRORED,
    "position in space": MIRRORED,
    "position in the kernel": MIRRORED,
    "rows are picked by index": NUMBERED,
    "a constant that is not in the state dict": NUMBERED,
    "positions are told apart": "what an argmax picks, by its place",
    "a slice with a step that does not divide it": "slices with uneven steps",
    "two ways of cutting the axis do not fit together": "views of which neither divides the other",
}
WHOLE = "orders of whole numbers alone, which no matcher could see"
SPREAD = "one order of pairs of indices that do not lie side by side"


def limit_of(entries: Entries, spec: PermutationSpec, image: Tensor, everything: Symmetries) -> str | None:
    """The known limit of the tracer that a symmetry falls to, if any.

    A spec has whole orders (all n! of them), each along one stride of one dimension; what it holds in place it reports
    with a reason. An axis held in place for its order that can be brought into any order is no limit, but a miss.
    """
    orders = [orbit for orbit in _orbits(everything, image) if _is_one_order(everything, orbit)]
    if not any(slot.tensor.is_floating_point() or slot.tensor.is_complex() for slot, _ in _moved(entries, image)):
        return WHOLE
    moved = {(slot.key, dim): slot.tensor.shape[dim] for slot, where in _moved(entries, image) for dim in where}
    for row in spec.unpermuted:
        size = moved.get((row.key, row.dim))
        if size is not None and row.reason in REPORTED:
            limit = REPORTED[row.reason]
            if limit != MIRRORED or size == 2 or not any(len(orbit) == size for orbit in orders):
                return limit
    return SPREAD if any(_spread(entries, orbit) for orbit in orders) else None


def _orbits(everything: Symmetries, image: Tensor) -> list[list[int]]:
    """The orbits, under all symmetries, of the entries that one of them moves."""
    orbit = torch.arange(len(image))
    changed = True
    while changed:
        before = orbit
        for other in everything.generators:
            orbit = torch.minimum(orbit, orbit[other])
            orbit = orbit.scatter_reduce(0, other, orbit, "amin")
        changed = not torch.equal(before, orbit)
    numbers = torch.unique(orbit[image != torch.arange(len(image))])
    return [torch.nonzero(orbit == number).flatten().tolist() for number in numbers]


def _is_one_order(everything: Symmetries, orbit: list[int]) -> bool:
    """Whether the symmetries bring these entries into any order."""
    places = {entry: place for place, entry in enumerate(orbit)}
    group = Group(len(orbit))
    for image in everything.generators:
        group.add(np.array([places[int(image[entry])] for entry in orbit]))
    return math.isclose(group.log10, math.lgamma(len(orbit) + 1) / math.log(10), abs_tol=1e-6)


def _spread(entries: Entries, orbit: list[int]) -> bool:
    """Whether entries do not lie at even steps along one dimension (or along several at once: a diagonal)."""
    slot = next(slot for slot in entries.slots if slot.start <= orbit[0] < slot.stop)
    where = np.unravel_index(np.array(orbit) - slot.start, tuple(slot.tensor.shape))
    places = [np.unique(along) for along in where if len(set(along.tolist())) > 1]
    return any(len(along) < len(orbit) or len(set(np.diff(along).tolist())) > 1 for along in places)


def members(entries: Entries, spec: PermutationSpec) -> Iterator[Images]:
    """Swaps of neighbouring units that generate the spec's group, as permutations of the entries."""
    numbered = entries.unflattened(torch.arange(entries.number, dtype=torch.float64))
    state = {**numbered, **{key: tensor for key, tensor in entries.net.state_dict().items() if key not in numbered}}
    identity = Permutation.identity(spec)
    for name, group in spec.groups.items():
        shape = spec.shape(name)
        for block in range(0 if group.frozen else math.prod(shape[:-1])):
            for unit in range(shape[-1] - 1):
                index = identity[name].clone().reshape(-1, shape[-1])
                index[block, unit], index[block, unit + 1] = unit + 1, unit
                moved = Permutation(spec, {**identity, name: index.reshape(shape)}).apply(state)
                yield entries.flattened(moved).long().numpy()


def _moved(entries: Entries, image: Tensor) -> Iterator[tuple[Slot, dict[int, Tensor]]]:
    """The tensors that a permutation moves, with the new position of each entry along the dimensions that change."""
    for slot in entries.slots:
        own = image[slot.start : slot.stop] - slot.start
        shape = slot.tensor.shape
        if not torch.equal(own, torch.arange(len(own))):
            where = torch.unravel_index(own.reshape(shape), shape)
            yield slot, {dim: at for dim, at in enumerate(where) if not torch.equal(at, _positions(shape, dim))}


def in_words(entries: Entries, image: Tensor) -> str:
    """Which tensors a permutation moves, along which dimension if it is only one."""
    found = []
    for slot, where in _moved(entries, image):
        words = f"{slot.key}{list(where)}"
        if len(where) == 1:
            ((dim, at),) = where.items()
            along = at.movedim(dim, 0).reshape(slot.tensor.shape[dim], -1)
            whole = bool((along == along[:, :1]).all())
            words += f" {along[:, 0].tolist()}" if whole else " differently in each column"
        found.append(words)
    return "; ".join(found)


def _positions(shape: torch.Size, dim: int) -> Tensor:
    return torch.arange(shape[dim]).reshape([-1 if at == dim else 1 for at in range(len(shape))]).expand(shape)
