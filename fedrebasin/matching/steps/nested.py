"""Groups that are nested, or lie across several dimensions of a tensor: their best move, computed from the tensors.

Blocks move with their content: what it is worth to put block v in place u is what the blocks' entries agree on once
the units inside are paired as well as they can be, and that is an assignment problem of its own for every pair of
blocks. Exact where the groups inside a block share no tensor's entries; where they do (the input and output channels
inside the groups of a grouped convolution) it is exact to first order, and the caller accepts true gains only.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.matching.problem import Problem
from fedrebasin.matching.steps.assignment import assign_batch


class _Score(NamedTuple):
    """For all pairs of units of a group in the same block: what pairing them is worth, and how to fill them.

    ``worth`` has shape (blocks, n, n); ``inside[child]`` has shape (blocks, n, n, units of the child in one unit of
    this group ...): the child's index if the pair is chosen.
    """

    worth: Tensor
    inside: dict[str, Tensor]


def best_move(problem: Problem, name: str, indices: Mapping[str, Tensor], threads: int = 1) -> dict[str, Tensor]:
    """The step that moves a group and everything inside it to the best place, all other groups staying.

    Returns:
        an index for every group of the family that moves, relative to the permuted candidate.
    """
    shape = problem.spec.shape(name)
    blocks = math.prod(shape[:-1])
    members = problem.families[name]
    keys = {key for member in members for key in problem.keys_of[member]}
    current = {key: problem.permuted(key, indices) for key in keys}
    score = _score(problem, name, current, blocks, threads)
    index = _solve(score.worth, threads)
    step = {name: index.reshape(shape)}
    rows = torch.arange(blocks)[:, None], torch.arange(shape[-1])[None, :]
    for member, inside in score.inside.items():
        step[member] = inside[rows[0], rows[1], index].reshape(problem.spec.shape(member))
    return step


def _score(problem: Problem, name: str, current: Mapping[str, Tensor], blocks: int, threads: int) -> _Score:
    """The pairs of a group's units inside each of so many blocks, everything inside the units paired at best."""
    worth = _cost(problem, name, current, blocks)
    units = worth.shape[-1]
    inside: dict[str, Tensor] = {}
    for child in problem.spec.children(name):
        if child.name not in problem.moved and len(problem.families[child.name]) == 1:
            continue
        size = problem.spec.shape(child.name)[-1]
        plain = _pairs(_cost(problem, child.name, current, blocks), units, size)
        found = _score(problem, child.name, current, blocks, threads)
        pairs = _pairs(found.worth, units, size)
        chosen = torch.arange(size).expand(*pairs.shape[:-1]) if child.frozen else _solve(pairs, threads)
        worth = worth + pairs.gather(-1, chosen[..., None]).sum((-1, -2))
        worth = worth - plain.diagonal(dim1=-2, dim2=-1).sum(-1)
        inside[child.name] = chosen
        for member, deeper in found.inside.items():
            inside[member] = _follow(deeper, chosen)
    return _Score(worth, inside)


def _cost(problem: Problem, name: str, current: Mapping[str, Tensor], blocks: int) -> Tensor:
    """Inner products of all pairs of units in the same block: shape (blocks, n, n), float64, on the CPU."""
    depth = len(problem.spec.shape(name))
    total: Tensor | None = None
    for key in problem.keys_of[name]:
        for owner, axis in problem.axes[key]:
            if owner == name:
                a = axis.units(problem.reference[key], depth).flatten(0, depth - 1)
                b = axis.units(current[key], depth).flatten(0, depth - 1)
                product = a.reshape(blocks, -1, a.shape[-1]) @ b.reshape(blocks, -1, b.shape[-1]).mT
                total = product.double() if total is None else total + product
    if total is None:
        units = math.prod(problem.spec.shape(name)) // blocks
        return torch.zeros(blocks, units, units, dtype=torch.float64)
    return total.cpu()


def _pairs(by_unit: Tensor, units: int, size: int) -> Tensor:
    """(blocks, units * size, units * size, ...) to (blocks, units, units, size, size, ...)."""
    return by_unit.reshape(len(by_unit), units, size, units, size, *by_unit.shape[3:]).movedim(3, 2)


def _solve(worth: Tensor, threads: int) -> Tensor:
    return torch.from_numpy(assign_batch(worth.numpy(), threads))


def _follow(deeper: Tensor, chosen: Tensor) -> Tensor:
    """Indices of a grandchild for the pairs of units that the child's assignment chose.

    Args:
        deeper: shape (blocks, units * size, units * size, ...), by pairs of the child's units.
        chosen: shape (blocks, units, units, size): the child's index for each pair of this group's units.
    """
    by_pair = _pairs(deeper, chosen.shape[1], chosen.shape[3])
    index = chosen.reshape(*chosen.shape, 1, *(1,) * (by_pair.dim() - 5))
    return by_pair.gather(4, index.expand(*chosen.shape, 1, *by_pair.shape[5:])).squeeze(4)
