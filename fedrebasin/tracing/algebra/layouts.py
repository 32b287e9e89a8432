"""Layouts: the axes of a group in one tensor, from boxes, in their shortest form."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from itertools import product as combinations

from fedrebasin.spec import Axis, Factor, Layout
from fedrebasin.tracing.algebra.boxes import Box, Boxes
from fedrebasin.tracing.algebra.parts import Part


def axes_of(
    part: Part, ancestors: Sequence[Part], key: str, shape: tuple[int, ...], lying: Iterable[Boxes]
) -> list[Axis]:
    """Every axis of a part in one tensor.

    Args:
        part: the part.
        ancestors: the parts in whose units it nests, innermost first.
        key: the tensor's key.
        shape: the tensor's shape.
        lying: the tensor's boxes.
    """
    layouts = [
        layout
        for one in lying
        for dim, row in enumerate(one)
        for box in row
        for place, (found, _) in enumerate(box.factors)
        if found is part
        for layout in _layouts(one, dim, box, place, ancestors)
    ]
    merged = True
    while merged:
        layouts = [_short(layout, shape) for layout in dict.fromkeys(layouts)]
        layouts, merged = _merge_runs(layouts)
    found = []
    for layout in layouts:
        units = layout.levels[-1]
        plain = len(layout.levels) == 1 and not layout.rest and not layout.start and units.size == shape[units.dim]
        found.append(Axis(key, units.dim, None if plain else layout))
    return found


def _layouts(one: Boxes, dim: int, box: Box, place: int, ancestors: Sequence[Part]) -> Iterator[Layout]:
    outside = [ancestor for ancestor in ancestors if not box.count(ancestor)]
    others = [
        [(at, each) for each in row if each.stands or any(each.count(ancestor) for ancestor in outside)]
        for at, row in enumerate(one)
        if at != dim
    ]
    for chosen in combinations(*(row for row in others if row)):
        named = [(dim, box), *chosen]
        levels: list[Factor] = []
        taken = {(dim, place)}
        for ancestor in reversed(ancestors):
            at, which, factor = next(
                (at, which, Factor(at, ancestor.size, stride))
                for at, each in named
                for which, (found, stride) in enumerate(each.factors)
                if found is ancestor
            )
            taken.add((at, which))
            levels.append(factor)
        own, stride = box.factors[place]
        levels.append(Factor(dim, own.size, stride))
        rest = [
            Factor(at, found.size, stride)
            for at, each in named
            for which, (found, stride) in enumerate(each.factors)
            if (at, which) not in taken
        ]
        rest += [Factor(at, 1, 1) for at, each in named if not each.factors]
        start = tuple(sorted((at, each.start) for at, each in named if each.start))
        yield Layout(tuple(levels), tuple(rest), start)


def _short(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout with neighbouring factors of the rest joined, and dimensions that it covers as a whole left out."""
    rest: list[Factor] = []
    moved = {level.dim for level in layout.levels}
    for factor in sorted(layout.rest, key=lambda factor: factor.order):
        before = rest[-1] if rest else None
        even = before is not None and before.dim == factor.dim and isinstance(factor.stride, int)
        if before is not None and even and before.stride == factor.size * factor.stride:
            rest[-1] = Factor(factor.dim, before.size * factor.size, factor.stride)
        else:
            rest.append(factor)
    kept = tuple(
        factor
        for factor in rest
        if not (factor.size == shape[factor.dim] and factor.dim not in moved)
        and not (factor.size == 1 and (factor.dim in moved or rest.count(factor) > 1))
    )
    return replace(layout, rest=kept)


def _merge_runs(layouts: list[Layout]) -> tuple[list[Layout], bool]:
    """Layouts that differ by equal steps along one dimension (the gates of a recurrent layer) become one."""
    for dim in sorted({dim for layout in layouts for dim, _ in layout.start}):
        alike: dict[Layout, list[int]] = {}
        for layout in layouts:
            if dim in layout.dims:
                others = tuple((at, first) for at, first in layout.start if at != dim)
                alike.setdefault(replace(layout, start=others), []).append(dict(layout.start).get(dim, 0))
        for base, starts in alike.items():
            starts.sort()
            steps = {after - before for before, after in pairwise(starts)}
            if len(steps) == 1:
                run = Factor(dim, len(starts), steps.pop())
                rest = tuple(factor for factor in base.rest if factor != Factor(dim, 1, 1))
                first = ((dim, starts[0]),) if starts[0] else ()
                whole = replace(base, rest=(*rest, run), start=tuple(sorted((*base.start, *first))))
                kept = [one for one in layouts if replace(one, start=_without(one, dim)) != base or dim not in one.dims]
                return [*kept, whole], True
    return layouts, False


def _without(layout: Layout, dim: int) -> tuple[tuple[int, int], ...]:
    return tuple((at, first) for at, first in layout.start if at != dim)
