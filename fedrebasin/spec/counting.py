"""How much of a model a spec moves, and in how many ways."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedrebasin.spec.axis import Axis, number_moved

if TYPE_CHECKING:
    from fedrebasin.spec.spec import PermutationSpec


def log10_symmetries(spec: PermutationSpec) -> float:
    """See :attr:`PermutationSpec.log10_symmetries`."""
    total = 0.0
    for group in spec.groups.values():
        if not group.frozen:
            *blocks, size = spec.shape(group.name)
            total += math.prod(blocks) * math.lgamma(size + 1)
    return total / math.log(10)


def coverage(spec: PermutationSpec) -> float:
    """See :attr:`PermutationSpec.coverage`."""
    axes: dict[str, list[Axis]] = {key: [] for key in spec.shapes if key not in spec.statistics}
    for group in spec.groups.values():
        for axis in group.axes:
            if axis.key in axes and not group.frozen:
                axes[axis.key].append(axis)
    total = sum(math.prod(spec.sizes(key)) for key in axes)
    moved = sum(number_moved(found, spec.sizes(key)) for key, found in axes.items())
    return moved / total if total else 0.0
