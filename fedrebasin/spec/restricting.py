"""The spec of a part of a model, whose other tensors stay as they are: adapters, a body without its head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedrebasin.errors import SpecError
from fedrebasin.keys import likely_rename
from fedrebasin.spec.group import Unpermuted
from fedrebasin.spec.renaming import without_missing_ties
from fedrebasin.state import has_mean

if TYPE_CHECKING:
    from fedrebasin.spec.spec import PermutationSpec


def torn(spec: PermutationSpec, keys: Iterable[str]) -> dict[str, str]:
    """The groups that lie partly in these tensors, see :meth:`PermutationSpec.torn`."""
    part = set(keys)
    spec = without_missing_ties(spec, part)
    found = {}
    for name, group in spec.groups.items():
        outside = [axis.key for axis in group.axes if axis.key not in part]
        if not group.frozen and 0 < len(outside) < len(group.axes):
            found[name] = outside[0]
    return found


def restricted(spec: PermutationSpec, keys: Iterable[str], freeze_torn: bool) -> PermutationSpec:
    """The spec of a part of the model, see :meth:`PermutationSpec.restrict`."""
    given = [key for key in keys if key in spec.shapes or not _is_integer(keys, key)]
    if unknown := [key for key in given if key not in spec.shapes]:
        hint = f": {likely}" if (likely := likely_rename(list(spec.shapes), given)) else ""
        raise SpecError(f"no key {unknown[0]!r} to restrict the spec to{hint}")
    if not given:
        raise SpecError("no keys to restrict the spec to: give those of the tensors that may move")
    part = set(given)
    spec = without_missing_ties(spec, part)
    tied = torn(spec, part)
    groups = {
        name: replace(group, axes=axes, frozen=group.frozen or (freeze_torn and name in tied))
        for name, group in spec.groups.items()
        if (axes := tuple(axis for axis in group.axes if axis.key in part))
    }
    still = tuple(
        Unpermuted(axis.key, axis.dim, f"tied to {tied[name]}, which is left out")
        for name, group in groups.items()
        if freeze_torn and name in tied
        for axis in group.axes
        if axis.key not in spec.statistics
    )
    return replace(
        spec,
        groups=groups,
        shapes={key: shape for key, shape in spec.shapes.items() if key in part},
        statistics=spec.statistics & part,
        unpermuted=(*(row for row in spec.unpermuted if row.key in part), *still),
        checked=spec.checked and (freeze_torn or not tied),
        tied=tuple(kept for keys in spec.tied if len(kept := tuple(key for key in keys if key in part)) > 1),
    )


def _is_integer(keys: Iterable[str], key: str) -> bool:
    """Whether the tensor, of a state dict, is one that need not be in a spec."""
    return isinstance(keys, Mapping) and not has_mean(keys[key])
