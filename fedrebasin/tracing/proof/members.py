"""The members of a symmetry group that a check applies: few, and such that two wrongs do not make a right."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedrebasin.spec import Permutation, PermutationSpec


def revealing_members(spec: PermutationSpec, generator: torch.Generator) -> Iterator[Permutation]:
    """Members that a wrong spec does not survive by luck.

    What moves are parts: a group's units in one block. Each has a cycle of its own through all of its units, so that
    no unit keeps its place. The parts are numbered from 1, and in run j those move whose number has bit j: every part
    moves, and of any two parts one moves without the other in some run. In a last run all parts swap two units that are
    neighbours on their cycle: a cycle and such a swap generate all orders of the part, so that a part which allows
    some orders only (rotations, say) does not pass.

    Args:
        spec: bound; frozen groups stay.
        generator: on the CPU.

    Returns:
        ``log2(number of parts) + 2`` members at most.
    """
    rows = {
        name: math.prod(spec.shape(name)[:-1])
        for name, group in spec.groups.items()
        if not group.frozen and spec.shape(name)[-1] > 1
    }
    parts = [(name, block) for name, blocks in rows.items() for block in range(blocks)]
    through = {part: torch.randperm(spec.shape(part[0])[-1], generator=generator) for part in parts}
    for bit in range(len(parts).bit_length()):
        moving = {part: _cycle(through[part]) for number, part in enumerate(parts, 1) if number >> bit & 1}
        yield _member(spec, moving)
    swaps = {part: _swap(through[part]) for part in parts if len(through[part]) > 2}
    if swaps:
        yield _member(spec, swaps)


def _cycle(through: Tensor) -> Tensor:
    index = torch.empty_like(through)
    index[through] = through.roll(-1)
    return index


def _swap(through: Tensor) -> Tensor:
    index = torch.arange(len(through))
    first, second = through[:2]
    index[first], index[second] = second, first
    return index


def _member(spec: PermutationSpec, moving: Mapping[tuple[str, int], Tensor]) -> Permutation:
    indices = {name: index.clone() for name, index in Permutation.identity(spec).items()}
    for (name, block), index in moving.items():
        indices[name].view(-1, len(index))[block] = index
    return Permutation(spec, indices)
