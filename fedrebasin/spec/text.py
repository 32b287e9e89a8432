"""A permutation spec in words: what ``print(spec)`` shows."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from fedrebasin.errors import CoverageWarning, some

if TYPE_CHECKING:
    from fedrebasin.spec.group import Group
    from fedrebasin.spec.spec import PermutationSpec

AXES_SHOWN = 8
REASONS_SHOWN = 3
#: Of the parameters, less than this is too little to move, and more than this too much not to be read at all.
MOVED, UNREAD = 0.5, 0.01
NOT_READ = "the model does not read it"  # the tracer's reason


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
            by = f" ({operator})" if operator else ""
            lines.append(f"  {some(axes, AXES_SHOWN)}: {reason}{by}")
    return "\n".join(lines)


def coverage_gaps(spec: PermutationSpec) -> str:
    """What to warn of before models are aligned by a spec: a sentence with the first reasons; empty if all is well.

    There is something to say where no group moves, where less than half of the parameters do, or where the traced
    forward reads more than a hundredth of them never: the decoder of an autoencoder whose ``forward`` is the encoder
    would be averaged in each model's own order. Specs by hand and frozen groups count like traced ones, since what is
    left in place is averaged all the same; without sizes nothing can be said yet.
    """
    if any(None in shape for shape in spec.shapes.values()):
        return ""
    moving = [group for group in spec.groups.values() if not group.frozen]
    moved = {axis.key for group in moving for axis in group.axes}
    still: dict[str, list[str]] = {}
    for key, _, reason, operator in spec.unpermuted:
        keys = still.setdefault(f"{reason} ({operator})" if operator else reason, [])
        if key not in moved and key not in keys:
            keys.append(key)
    sizes = {reason: sum(math.prod(spec.sizes(key)) for key in keys) for reason, keys in still.items() if keys}
    total = sum(math.prod(spec.sizes(key)) for key in spec.shapes if key not in spec.statistics)
    if moving and spec.coverage >= MOVED and sizes.get(NOT_READ, 0) <= UNREAD * total:
        return ""
    first = sorted(sizes, key=lambda reason: (reason != NOT_READ, -sizes[reason]))[:REASONS_SHOWN]
    reasons = "; ".join(f"{some(still[reason], 1)}: {reason}" for reason in first)
    count = f"{len(moving)} group{'' if len(moving) == 1 else 's'}"
    head = (
        f"the spec's {count} move {spec.coverage:.0%} of the parameters" if moving else "the spec has no group to move"
    )
    return f"{head}, and all else is averaged in each model's own order" + (f": {reasons}" if reasons else "")


def warn_of_gaps(spec: PermutationSpec) -> None:
    """Warn the caller's caller of :func:`coverage_gaps`, if there are any."""
    if sentence := coverage_gaps(spec):
        warnings.warn(sentence, CoverageWarning, stacklevel=3)


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
