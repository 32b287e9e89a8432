"""What the tracer is known not to find, by kind: a limit of what a spec can say, or reported with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from fedrebasin import PermutationSpec
from fedrebasin.spec.axis import Axis
from fedrebasin.spec.group import Group as UnitGroup
from tests.tracing.fuzz_entries import Entries, Slot
from tests.tracing.fuzz_groups import Group
from tests.tracing.fuzz_search import Symmetries

MIRRORED = "mirrored or turned orders"
NUMBERED = "places numbered by constants"
WRITTEN = "units that are not written over"
PICKED = "what an argmax or argsort picks, by its place"
REPORTED = {
    "order in time": MIRRORED,
    "order matters": MIRRORED,
    "position in space": MIRRORED,
    "position in the kernel": MIRRORED,
    "rows are picked by index": NUMBERED,
    "a constant that is not in the state dict": NUMBERED,
    "entries are written by index": WRITTEN,
    "positions are told apart": PICKED,
    "blocks that lie in two places of one tensor": "blocks that lie in two places of one tensor",
    "a slice with a step that does not divide it": "slices with uneven steps",
    "two ways of cutting the axis do not fit together": "views of which neither divides the other",
}
WHOLE_ORDERS = {MIRRORED, WRITTEN}  # a whole order of such an axis is no limit
COPIES = "copies of a unit, told apart by their places"
UNWEIGHTED = "orders that no weight has, which no matcher could see"
OUT_OF_STEP = "one order that lies differently in two tensors"
SPREAD = "one order of pairs of indices that do not lie side by side"


def limit_of(entries: Entries, spec: PermutationSpec, image: Tensor, everything: Symmetries) -> str | None:
    """The known limit of the tracer that a symmetry falls to, if any.

    A spec has whole orders (all n! of them), each along one stride of one dimension; what it holds in place it reports
    with a reason. An axis held in place for its order that can be brought into any order is no limit, but a miss.
    """
    orders = [orbit for orbit in _orbits(everything, image) if _is_one_order(everything, orbit)]
    weights = {key for key, _ in entries.net.named_parameters(remove_duplicate=False)}
    if not any(slot.key in weights for slot, _ in moved_axes(entries, image)):
        return UNWEIGHTED
    moved = {(slot.key, dim): slot.tensor.shape[dim] for slot, where in moved_axes(entries, image) for dim in where}
    for row in spec.unpermuted:
        size = moved.get((row.key, row.dim))
        if size is not None and row.reason in REPORTED:
            limit = PICKED if "argsort" in row.operator else REPORTED[row.reason]
            if limit not in WHOLE_ORDERS or size == 2 or not any(len(orbit) == size for orbit in orders):
                return limit
    if any(_copied(entries, group, image) for group in spec.groups.values()):
        return COPIES
    if any(_spread(entries, orbit) for orbit in orders):
        return SPREAD
    return OUT_OF_STEP if any(_out_of_step(everything, *pair) for pair in combinations(orders, 2)) else None


def _copied(entries: Entries, group: UnitGroup, image: Tensor) -> bool:
    """Whether a symmetry only moves copies of the units that a group has: where they come from, each lies once."""
    plain = [axis for axis in group.axes if axis.layout is None or not axis.layout.rest]
    if group.frozen or not plain:
        return False
    covered = torch.zeros(len(image))
    for axis in group.axes:
        labels = torch.zeros(len(image))
        view = axis.view(entries.unflattened(labels)[axis.key])
        units = math.prod(view.shape[: len(axis.layout.levels) if axis.layout else 1])
        view += torch.arange(1.0, units + 1).reshape(_leading(view, axis))
        if not torch.equal(labels[image], labels):
            return False
        covered += labels
    return bool((covered[image != torch.arange(len(image))] > 0).all())


def _leading(view: Tensor, axis: Axis) -> tuple[int, ...]:
    """The shape of a view's units, to be broadcast over the rest of it."""
    levels = len(axis.layout.levels) if axis.layout else 1
    return (*view.shape[:levels], *[1] * (view.dim() - levels))


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


def _out_of_step(everything: Symmetries, first: list[int], second: list[int]) -> bool:
    """Whether the symmetries move two orbits alike, but not their first entries with the first, and so on."""
    images = [image.tolist() for image in everything.generators]
    matches = []
    for start in second if len(first) == len(second) else []:
        match, fresh, fits = {first[0]: start}, [first[0]], True
        while fresh and fits:
            one = fresh.pop()
            for image in images:
                if image[one] not in match:
                    match[image[one]] = image[match[one]]
                    fresh.append(image[one])
                fits = fits and match[image[one]] == image[match[one]]
        if fits:
            matches.append([match[one] for one in first])
    return bool(matches) and sorted(second) not in matches


def moved_axes(entries: Entries, image: Tensor) -> Iterator[tuple[Slot, dict[int, Tensor]]]:
    """The tensors that a permutation moves, with the new position of each entry along the dimensions that change."""
    for slot in entries.slots:
        own = image[slot.start : slot.stop] - slot.start
        shape = slot.tensor.shape
        if not torch.equal(own, torch.arange(len(own))):
            where = torch.unravel_index(own.reshape(shape), shape)
            yield slot, {dim: at for dim, at in enumerate(where) if not torch.equal(at, _positions(shape, dim))}


def _positions(shape: torch.Size, dim: int) -> Tensor:
    return torch.arange(shape[dim]).reshape([-1 if at == dim else 1 for at in range(len(shape))]).expand(shape)
