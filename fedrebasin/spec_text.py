"""A permutation spec in words: what ``print(spec)`` shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrebasin.group import Group
    from fedrebasin.spec import PermutationSpec

AXES_SHOWN = 8


def describe(spec: PermutationSpec) -> str:
    """A summary line, one line per group with its axes, then the axes that stay and why."""
    lines = [_summary(spec)]
    width = max((len(name) for name in spec.groups), default=0)
    for group in spec.outermost_first:
        shown = [str(axis) for axis in group.axes[:AXES_SHOWN]]
        if len(group.axes) > AXES_SHOWN:
            shown.append(f"and {len(group.axes) - AXES_SHOWN} more")
        lines.append(f"  {group.name:<{width}}  {_size(spec, group):>12}  {', '.join(shown)}")
    if spec.unpermuted:
        lines.append("not permuted:")
        reasons: dict[tuple[str, str], list[str]] = {}
        for key, dim, reason, operator in spec.unpermuted:
            reasons.setdefault((reason, operator), []).append(f"{key}[{dim}]")
        for (reason, operator), axes in reasons.items():
            more = f" and {len(axes) - AXES_SHOWN} more" if len(axes) > AXES_SHOWN else ""
            by = f" ({operator})" if operator else ""
            lines.append(f"  {', '.join(axes[:AXES_SHOWN])}{more}: {reason}{by}")
    return "\n".join(lines)


def _summary(spec: PermutationSpec) -> str:
    head = f"PermutationSpec: {len(spec.groups)} group{'' if len(spec.groups) == 1 else 's'}"
    if any(None in shape for shape in spec.shapes.values()):
        return f"{head}, sizes not known yet"
    total = sum(math.prod(spec.sizes(key)) for key in spec.shapes if key not in spec.statistics)
    checked = "checked" if spec.checked else "not checked"
    return f"{head}, {spec.coverage:.1%} of {total:,} parameters, 10^{spec.log10_symmetries:.1f} symmetries, {checked}"


def _size(spec: PermutationSpec, group: Group) -> str:
    sizes = [*[parent.size for parent in spec.ancestors(group.name)][::-1], group.size]
    text = "x".join("?" if size is None else str(size) for size in sizes)
    return f"{text} frozen" if group.frozen else f"{text} units"
