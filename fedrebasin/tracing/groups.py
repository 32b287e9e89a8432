"""From parts to groups: which free parts index the parameters, where they lie, and what nests in what."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property

from fedrebasin.spec import Axis, Group, Unpermuted
from fedrebasin.tracing.algebra import (
    TWO_PLACES,
    UNIT,
    Box,
    Boxes,
    Part,
    Tree,
    axes_of,
    boxes,
    cases_in,
    leaves,
    resolve,
    selector_of,
)
from fedrebasin.tracing.values import Index, Value


class Grouping:
    """The groups that the parts of a model's parameters form.

    Args:
        parameters: the axes of each tensor by key.
        index: all index spaces of the graph.
        weights: the keys that vote: what moves none of them is no group.
    """

    def __init__(self, parameters: Mapping[str, Value], index: Index, weights: Collection[str]) -> None:
        self._index, self._weights = index, weights
        self._spaces: dict[tuple[Tree, ...], list[Boxes]] = {}
        self._lying = {key: list(boxes(value.axes)) for key, value in parameters.items()}
        self._parameters = parameters
        self._cut: dict[Part, Part] = {}
        self._undo_cuts()

    @cached_property
    def groups(self) -> dict[str, Group]:
        """All groups by name, in the order of the state dict."""
        parents = self._parents
        voting = {part for key in self._weights for part in _parts_in(self._lying[key])}
        needed = {part for part in self._parts if part.pinned is None and part in voting}
        for part in list(needed):
            needed |= set(_chain(part, parents))
        axes: dict[Part, list[Axis]] = {part: [] for part in self._parts if part in needed}
        for key, lying in self._lying.items():
            shape = self._parameters[key].shape
            for part in _parts_in(lying):
                if part in needed:
                    axes[part] += axes_of(part, _chain(part, parents), key, shape, lying)
        names: dict[Part, str] = {}
        for part in axes:
            # What a block consists of is named after where it lies, and as units, so as not to look like a block.
            nested = ":units" if part in parents else ""
            first = next((axis for axis in axes[part] if axis.key in self._weights), axes[part][0])
            names[part] = _unused(_name(first) + nested, set(names.values()))
        return {
            names[part]: Group(
                name=names[part],
                size=part.size,
                axes=tuple(axes[part]),
                parent=None if parents.get(part) is None else names[parents[part]],
                frozen=part.pinned is not None,
            )
            for part in axes
        }

    def unpermuted(self, keys: Iterator[str] | list[str]) -> list[Unpermuted]:
        """Every axis of these tensors that no group moves, or whose blocks none can, with the reason."""
        moved = {(axis.key, axis.dim) for group in self.groups.values() if not group.frozen for axis in group.axes}
        found = []
        for key in keys:
            for dim, axis in enumerate(self._parameters[key].axes):
                reasons = [part.pinned for part in leaves(axis) if part.pinned is not None]
                if (key, dim) not in moved:
                    reason, operator = reasons[0] if reasons else ("a single unit", "")
                    found.append(Unpermuted(key, dim, reason, operator))
                elif blocks := [pinned for pinned in reasons if pinned.reason == TWO_PLACES]:
                    found.append(Unpermuted(key, dim, *blocks[0]))
        return found

    @property
    def _parts(self) -> list[Part]:
        found: dict[Part, None] = {}
        for lying in self._lying.values():
            found |= _parts_in(lying)
        return list(found)

    # -- cuts that nobody needed -----------------------------------------------------------------------------------

    def _undo_cuts(self) -> None:
        """Parts that are always next to each other are one part that a view had cut."""
        merged = True
        while merged:
            merged = False
            for first, second in self._neighbours():
                whole = Part(first.size * second.size, places=first.places)
                self._cut[whole] = self._cut.get(first, first)
                for lying in self._lying.values():
                    lying[:] = [
                        tuple(tuple(_join(box, first, second, whole) for box in row) for row in one) for one in lying
                    ]
                merged = True
                break

    def _neighbours(self) -> Iterator[tuple[Part, Part]]:
        pairs: dict[tuple[Part, Part], int] = {}
        total: dict[Part, int] = {}
        for lying in self._lying.values():
            for one in lying:
                for row in one:
                    for box in row:
                        for place, (part, stride) in enumerate(box.factors):
                            total[part] = total.get(part, 0) + 1
                            for other, step in box.factors[place + 1 : place + 2]:
                                if isinstance(step, int) and stride == other.size * step:
                                    pairs[part, other] = pairs.get((part, other), 0) + 1
        for (first, second), number in pairs.items():
            if (
                number == total[first] == total[second]
                and first is not second
                and first.pinned is None
                and second.pinned is None
                and first.places.keys() == second.places.keys()
            ):
                yield first, second

    # -- what nests in what ----------------------------------------------------------------------------------------

    @cached_property
    def _parents(self) -> dict[Part, Part]:
        """For each part the innermost other one in whose units it may have orders of its own."""
        outer: dict[Part, list[Part]] = {}
        for lying in self._lying.values():
            for one in lying:
                together = list(dict.fromkeys(part for row in one for box in row for part, _ in box.factors))
                for part in together:
                    if part not in outer:
                        outer[part] = [other for other in together if self._nests(part, other)]
        parents: dict[Part, Part] = {}
        for part in sorted(outer, key=lambda part: -len(part.places)):
            nearest = sorted(outer[part], key=lambda other: (len(other.places), -other.number))
            for other in nearest:
                if all(one in outer[part] for one in _chain(other, parents)):
                    parents[part] = other
                    break
        return parents

    def _nests(self, part: Part, other: Part) -> bool:
        if part is other or not part.places.keys() <= other.places.keys():
            return False
        if part.places.keys() == other.places.keys() and _rank(other) > _rank(part):
            return False
        if not all(_paired(one, part, other) for one in self._occurrences[part]):
            return False
        part, other = self._cut.get(part, part), self._cut.get(other, other)
        return all(_paired(one, part, other) for place in part.places for one in self._space(place))

    @cached_property
    def _occurrences(self) -> dict[Part, list[Boxes]]:
        """Where in the parameters each part lies."""
        found: dict[Part, list[Boxes]] = {}
        for lying in self._lying.values():
            for one in lying:
                for part in {part for row in one for box in row for part, _ in box.factors}:
                    found.setdefault(part, []).append(one)
        return found

    @cached_property
    def _known(self) -> frozenset[Part]:
        """The parts that nesting is asked about."""
        return frozenset(self._cut.get(part, part) for part in self._occurrences)

    def _space(self, place: int) -> list[Boxes]:
        """The boxes of an index space without what nesting does not depend on: other parts, starts and strides."""
        axes = tuple(map(resolve, self._index.spaces[place]))
        if axes not in self._spaces:
            asked = self._known | {selector_of(found) for axis in axes for found in cases_in(axis)}
            found = boxes(tuple(axis if any(part in asked for part in leaves(axis)) else UNIT for axis in axes))
            self._spaces[axes] = list(dict.fromkeys(tuple(map(_counted, one)) for one in found))
        return self._spaces[axes]


def _parts_in(lying: Iterable[Boxes]) -> dict[Part, None]:
    """The parts that lie in a tensor, each once, in their order."""
    return dict.fromkeys(part for one in lying for row in one for box in row for part, _ in box.factors)


def _counted(row: tuple[Box, ...]) -> tuple[Box, ...]:
    return tuple(dict.fromkeys(Box(0, tuple((part, 0) for part, _ in box.factors)) for box in row))


def _rank(part: Part) -> tuple[bool, int]:
    return part.pinned is None, part.number


def _paired(one: Boxes, part: Part, other: Part) -> bool:
    """Whether it is clear in which unit of ``other`` each unit of ``part`` lies, wherever it occurs in the tensor."""
    for dim, row in enumerate(one):
        for box in row:
            if not box.count(part) or box.count(other) == 1:
                continue
            elsewhere = [rest for at, rest in enumerate(one) if at != dim and any(each.count(other) for each in rest)]
            if len(elsewhere) != 1 or any(each.count(other) != 1 for each in elsewhere[0]) or box.count(other):
                return False
    return True


def _chain(part: Part, parents: Mapping[Part, Part]) -> list[Part]:
    """The ancestors of a part, innermost first."""
    found = []
    while part in parents:
        part = parents[part]
        found.append(part)
    return found


def _join(box: Box, first: Part, second: Part, whole: Part) -> Box:
    factors: list[tuple[Part, int | tuple[int, ...]]] = []
    for part, stride in box.factors:
        if part is second and factors and factors[-1][0] is first:
            factors[-1] = (whole, stride)
        else:
            factors.append((part, stride))
    return Box(box.start, tuple(factors), box.stands)


def _name(axis: Axis) -> str:
    base = axis.key.removesuffix(".weight")
    return base if axis.dim == 0 else f"{base}[{axis.dim}]"


def _unused(name: str, taken: set[str]) -> str:
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}/{number}", number + 1
    return found
