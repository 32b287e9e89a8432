"""Git Re-Basin's notation for permutation specs: one name per dimension of each tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedrebasin.errors import SpecError
from fedrebasin.spec.axis import Axis, Factor, Layout
from fedrebasin.spec.group import Group

Units = str | None | tuple[str, int]


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
                case (str() as name, int() as run) if run > 0:
                    # Size 0 stands for "not known yet"; bind() replaces it.
                    layout = Layout((Factor(dim, 0, run),), (Factor(dim, run, 1),))
                    found.setdefault(name, []).append(Axis(key, dim, layout))
                case _:
                    raise SpecError(
                        f"{key}[{dim}]: {units!r} must be a group's name, None, or (name, entries per unit)"
                    )
    return {name: Group(name, None, tuple(where)) for name, where in found.items()}


def with_sizes(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> Group:
    """The group with its size, and the layouts of its axes, taken from the shapes of the tensors."""
    size, axes = group.size, []
    for axis in group.axes:
        length = shapes[axis.key][axis.dim]
        if axis.layout is None:
            axes.append(axis)
            size = length if size is None else size
            continue
        (units,), (run,) = axis.layout.levels, axis.layout.rest
        count = -(-length // run.size)  # rounded up: a part of a unit left over reaches outside of the axis
        axes.append(replace(axis, layout=Layout((units._replace(size=count),), (run,))))
        size = count if size is None else size
    return replace(group, size=size, axes=tuple(axes))
