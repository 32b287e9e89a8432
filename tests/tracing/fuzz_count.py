"""How many of a net's symmetries a spec has, against the true number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec
from tests.tracing.fuzz_entries import Entries
from tests.tracing.fuzz_groups import Group, Images
from tests.tracing.fuzz_limits import limit_of, moved_axes
from tests.tracing.fuzz_search import UndecidedError
from tests.tracing.fuzz_symmetries import symmetries, twins


@dataclass(frozen=True)
class Comparison:
    """The symmetries of a net and those of a spec, both without what the function does not see.

    Args:
        true: log10 of the number of symmetries there are.
        found: log10 of the number of those that the spec has.
        missing: symmetries that the spec does not have, in words, without those that fall to a known limit.
        limits: the known limits that the others fall to.
        extra: whether the spec has one that the search did not find.
    """

    true: float
    found: float
    missing: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    extra: bool = False


def compared(entries: Entries, spec: PermutationSpec) -> Comparison:
    """Count; entries that the function sees only the sum of, or not at all, are not told apart.

    Raises:
        UndecidedError: if the search takes too long.
    """
    everything = symmetries(entries)
    classes = twins(entries, everything).numpy()
    number = int(classes.max()) + 1
    first = np.unique(classes, return_index=True)[1]
    spec_group, true_group = Group(number), Group(number)

    def on_classes_of(image: Images) -> Images:
        found = classes[image]
        if not np.array_equal(found, found[first][classes]):
            raise UndecidedError
        return found[first]

    for image in members(entries, spec):
        spec_group.add(on_classes_of(image))
    found = spec_group.log10
    others, limits = [], []
    for image in everything.generators:
        on_classes = on_classes_of(image.numpy())
        true_group.add(on_classes)
        if on_classes not in spec_group:
            limit = limit_of(entries, spec, image, everything)
            if limit is None:
                others.append((image, on_classes))
            else:
                limits.append(limit)
                spec_group.add(on_classes)
    missing = [in_words(entries, image) for image, on_classes in others if on_classes not in spec_group]
    extra = any(one not in true_group for one in spec_group.generators)
    return Comparison(true_group.log10, found, tuple(missing), tuple(limits), extra)


def members(entries: Entries, spec: PermutationSpec) -> Iterator[Images]:
    """Swaps of neighbouring units that generate the spec's group, as permutations of the entries."""
    numbered = entries.unflattened(torch.arange(entries.number, dtype=torch.float64))
    state = {**numbered, **{key: tensor for key, tensor in entries.net.state_dict().items() if key not in numbered}}
    identity = Permutation.identity(spec)
    for name, group in spec.groups.items():
        shape = spec.shape(name)
        for block in range(0 if group.frozen else math.prod(shape[:-1])):
            for unit in range(shape[-1] - 1):
                index = identity[name].clone().reshape(-1, shape[-1])
                index[block, unit], index[block, unit + 1] = unit + 1, unit
                moved = Permutation(spec, {**identity, name: index.reshape(shape)}).apply(state)
                yield entries.flattened(moved).long().numpy()


def in_words(entries: Entries, image: Tensor) -> str:
    """Which tensors a permutation moves, along which dimension if it is only one."""
    found = []
    for slot, where in moved_axes(entries, image):
        words = f"{slot.key}{list(where)}"
        if len(where) == 1:
            ((dim, at),) = where.items()
            along = at.movedim(dim, 0).reshape(slot.tensor.shape[dim], -1)
            whole = bool((along == along[:, :1]).all())
            words += f" {along[:, 0].tolist()}" if whole else " differently in each column"
        found.append(words)
    return "; ".join(found)
