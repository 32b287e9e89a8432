"""A spec under other keys: the same groups, filed under what another program calls the same tensors."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedrebasin.errors import SpecError
from fedrebasin.keys import pair
from fedrebasin.state import has_mean, missing_ties

if TYPE_CHECKING:
    from fedrebasin.spec.spec import PermutationSpec


def renamed(spec: PermutationSpec, names: Mapping[str, str]) -> PermutationSpec:
    """The spec with its keys renamed, see :meth:`PermutationSpec.rename`."""
    if unknown := [key for key in names if key not in spec.shapes]:
        raise SpecError(f"no key {unknown[0]!r} to rename: the spec has {', '.join(list(spec.shapes)[:5])}, ...")
    new = {key: names.get(key, key) for key in spec.shapes}
    if len(set(new.values())) < len(new):
        twice = next(key for key in new.values() if list(new.values()).count(key) > 1)
        raise SpecError(f"two keys would be called {twice!r}: give each a name of its own")
    groups = {
        name: replace(group, axes=tuple(replace(axis, key=new.get(axis.key, axis.key)) for axis in group.axes))
        for name, group in spec.groups.items()
    }
    return replace(
        spec,
        groups=groups,
        shapes={new[key]: shape for key, shape in spec.shapes.items()},
        statistics=frozenset(new.get(key, key) for key in spec.statistics),
        unpermuted=tuple(row._replace(key=new.get(row.key, row.key)) for row in spec.unpermuted),
        tied=tuple(tuple(new.get(key, key) for key in keys) for keys in spec.tied),
    )


def without_missing_ties(spec: PermutationSpec, state: Container[str]) -> PermutationSpec:
    """The spec without the keys that the state dict has under the name of one that is tied to them, or as it is."""
    absent = missing_ties(state, spec.shapes, spec.tied)
    if not absent:
        return spec
    groups = {
        name: replace(group, axes=tuple(axis for axis in group.axes if axis.key not in absent))
        for name, group in spec.groups.items()
    }
    return replace(
        spec,
        groups=groups,
        shapes={key: shape for key, shape in spec.shapes.items() if key not in absent},
        statistics=spec.statistics - absent.keys(),
        unpermuted=tuple(row for row in spec.unpermuted if row.key not in absent),
        tied=(),
    )


def pairs_with(spec: PermutationSpec, state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The state's key for each key of the spec, which need not speak of whole numbers."""
    pairs = pair(list(spec.shapes), list(state))
    return pair(list(spec.shapes), [key for key in state if has_mean(state[key])]) if pairs is None else pairs
