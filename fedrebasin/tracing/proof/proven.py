"""What is left of a spec once the groups that change the function are dropped."""

from collections.abc import Callable
from dataclasses import replace

from fedrebasin.spec import PermutationSpec, Unpermuted


def proven(spec: PermutationSpec, holds: Callable[[PermutationSpec], bool]) -> PermutationSpec:
    """The spec without the groups that change the function, which are reported.

    Args:
        spec: bound.
        holds: whether a spec leaves the function as it is.
    """
    if holds(spec):
        return replace(spec, checked=True)
    wrong = []
    for group in spec.outermost_first:
        if not group.frozen and not holds(spec.freeze(name for name in spec.groups if name != group.name)):
            wrong.append(group.name)
    rest = _without(spec, wrong)
    return replace(rest if holds(rest) else _without(spec, list(spec.groups)), checked=True)


def _without(spec: PermutationSpec, names: list[str]) -> PermutationSpec:
    """The spec without these groups, which are reported; blocks that others lie in stay, frozen."""
    dropped = spec.freeze(names)
    lost = [
        Unpermuted(axis.key, axis.dim, f"the check of group {name!r} failed")
        for name in names
        for axis in spec.groups[name].axes
    ]
    keep = {name: group for name, group in dropped.groups.items() if not group.frozen}
    for name in list(keep):
        for ancestor in dropped.ancestors(name):
            keep.setdefault(ancestor.name, ancestor)
    groups = {name: group for name, group in dropped.groups.items() if name in keep}
    return replace(dropped, groups=groups, unpermuted=(*spec.unpermuted, *lost))
