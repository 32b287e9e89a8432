"""Whether a spec fits a state dict: the keys, the shapes, and the axes in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedrebasin.spec.notation import with_sizes
from fedrebasin.spec.renaming import without_missing_ties
from fedrebasin.state import flaws, has_mean

if TYPE_CHECKING:
    from fedrebasin.spec.spec import PermutationSpec


def misfits(spec: PermutationSpec, state: Mapping[str, Tensor]) -> list[str]:
    """Everything that keeps the spec from fitting, see :meth:`PermutationSpec.misfits`."""
    if found := flaws(state):
        return found
    spec = without_missing_ties(spec, state)
    found = [f"{key}: missing from the state dict" for key in spec.shapes if key not in state]
    for key, tensor in state.items():
        shape = tuple(tensor.shape)
        if key not in spec.shapes:
            if has_mean(tensor):
                found.append(f"{key}: shape {shape} is not in the spec")
            continue
        known = spec.shapes[key]
        if len(known) != len(shape) or any(
            size not in (None, actual) for size, actual in zip(known, shape, strict=True)
        ):
            expected = tuple("?" if size is None else size for size in known)
            found.append(f"{key}: shape {shape} where the spec has ({', '.join(map(str, expected))})")
    return found or misplaced(sized(spec, state))


def misplaced(spec: PermutationSpec) -> list[str]:
    """What keeps axes from lying in tensors of the spec's own shapes, if all are known, one sentence each."""
    if any(None in shape for shape in spec.shapes.values()) or any(g.size is None for g in spec.groups.values()):
        return []
    return [
        sentence
        for group in spec.groups.values()
        for axis in group.axes
        for sentence in axis.misfits(spec.sizes(axis.key), spec.shape(group.name))
    ]


def sized(spec: PermutationSpec, state: Mapping[str, Tensor]) -> PermutationSpec:
    """The spec with the sizes that it does not know yet, from the tensors of a state dict that has its keys."""
    if all(None not in shape for shape in spec.shapes.values()):
        return spec
    shapes = {key: tuple(state[key].shape) for key in spec.shapes}
    groups = {name: with_sizes(group, shapes) for name, group in spec.groups.items()}
    return replace(spec, groups=groups, shapes=shapes)
