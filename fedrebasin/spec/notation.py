"""Git Re-Basin's notation for permutation specs: one name per dimension of each tensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedrebasin.errors import SpecError
from fedrebasin.spec.axis import Axis, Factor, Layout
from fedrebasin.spec.group import Group

#: A name; None; or the factors of a dimension in row-major order, one of them a name: ``("P", 49)``, ``(49, "P")``.
Units = str | None | tuple[str | int, ...]


def parse_axes(axes: Mapping[str, Sequence[Units]]) -> dict[str, Group]:
    """The groups that the notation names; their sizes are not known yet.

    Raises:
        SpecError: if an entry is not a name, None, or a name with the number of entries per unit.
    """
    found: dict[str, list[Axis]] = {}
    for key, row in axes.items():
        if isinstance(row, str):
            raise SpecError(f"{key}: {row!r} must be a sequence with one entry per dimension, as in ({row!r},)")
        for dim, units in enumerate(row):
            match units:
                case None:
                    continue
                case str():
                    found.setdefault(units, []).append(Axis(key, dim))
                case tuple() | list():
                    name, layout = _strided(key, dim, tuple(units))
                    found.setdefault(name, []).append(Axis(key, dim, layout))
                case _:
                    raise SpecError(_malformed(key, dim, units))
    return {name: Group(name, None, tuple(where)) for name, where in found.items()}


def _strided(key: str, dim: int, units: tuple[object, ...]) -> tuple[str, Layout]:
    """The group's name, and a layout in which 0 stands for what is not known yet; :func:`with_sizes` replaces it."""
    names = [one for one in units if isinstance(one, str)]
    runs = [one for one in units if isinstance(one, int) and not isinstance(one, bool) and one > 0]
    if len(names) != 1 or len(runs) != len(units) - 1 or not runs:
        raise SpecError(_malformed(key, dim, units))
    place = units.index(names[0])
    outer, inner = math.prod(runs[:place]), math.prod(runs[place:])
    rest = [Factor(dim, outer, 0)] * (place > 0) + [Factor(dim, inner, 1)] * (place < len(runs))
    return names[0], Layout((Factor(dim, 0, inner),), tuple(rest))


def _malformed(key: str, dim: int, units: object) -> str:
    return (
        f"{key}[{dim}]: {units!r} must be a group's name, None, (name, entries per unit), or the factors of the "
        "dimension in row-major order with one name among them, as in (49, name)"
    )


def with_sizes(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> Group:
    """The group with its size, and the layouts of its axes, taken from the shapes of the tensors."""
    size, axes = group.size, []
    for axis in group.axes:
        length = shapes[axis.key][axis.dim]
        if axis.layout is None:
            axes.append(axis)
            size = length if size is None else size
            continue
        (units,), rest = axis.layout.levels, axis.layout.rest
        count = -(-length // math.prod(factor.size for factor in rest))  # rounded up: what is left over reaches outside
        assert isinstance(units.stride, int)
        rest = tuple(factor if factor.stride else factor._replace(stride=count * units.stride) for factor in rest)
        axes.append(replace(axis, layout=Layout((units._replace(size=count),), rest)))
        size = count if size is None else size
    return replace(group, size=size, axes=tuple(axes))
