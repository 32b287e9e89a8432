"""Signatures: what can be said of a unit whatever the order of all other units, and the pairing of units by it.

Coordinate ascent pairs a group's units by tensors whose other dimensions are in some order already; from a wrong order
of everything it may never get to the right one, least of all where blocks (heads, experts) hold units of their own.
A signature asks for no order: the means of some functions of a unit's entries over every dimension that another group
moves. A copy has the same signatures; a copy with some noise has nearly the same ones, since a mean over many entries
moves by the same share of its spread as each entry does.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.steps import assign_batch
from fedrebasin.memory import LARGE
from fedrebasin.spec import Axis

# Dimensions that nothing moves are told apart in so many stretches.
_STRETCHES = 8
# The typical size of a tensor's entries is that of so many of them.
_SAMPLE = 2**14
# Deviations between units below this share of what is measured are rounding.
_ROUNDING = 1e-6


class Paired(NamedTuple):
    """The units of two models paired by their signatures.

    Args:
        indices: of all groups.
        distance: how far the signatures of paired units are apart, squared, as a share of what two units drawn at
            random are apart; the median over the units of all groups that move. 0 for exact copies, about 1 for
            strangers.
    """

    indices: Indices
    distance: float


def pair_by_signature(problem: Problem, threads: int = 1) -> Paired:
    """Pair blocks first, then the units inside of paired blocks, each group by its own assignment.

    Args:
        problem: two models.
        threads: for the assignments inside of blocks.
    """
    ours, theirs = _signatures(problem)
    still = problem.start(None)
    places: dict[str, Tensor] = {}
    indices: Indices = {}
    distances = []
    for group in problem.spec.outermost_first:
        name, shape = group.name, problem.spec.shape(group.name)
        blocks = torch.zeros(1, dtype=torch.int64) if group.parent is None else places[group.parent].flatten()
        index = still[name].reshape(len(blocks), shape[-1])
        if name in ours and not group.frozen:
            a = ours[name].reshape(len(blocks), shape[-1], -1)
            b = theirs[name].reshape(len(blocks), shape[-1], -1)[blocks]
            apart = _squared_distances(a, b)
            index = torch.from_numpy(assign_batch(apart.neg().numpy(), threads))
            # Of a column per place the mean over all pairs is twice the number of features that tell units apart.
            scale = max(float(apart.mean()), torch.finfo(torch.float64).tiny)
            distances.append(apart.gather(-1, index[..., None]).flatten() / scale)
        indices[name] = index.reshape(shape)
        places[name] = blocks[:, None] * shape[-1] + index
    distance = float(torch.cat(distances).median()) if distances else 1.0
    return Paired(indices, distance)


def _signatures(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By group, both models' signatures: shape (*group.shape, features), float64, on the CPU."""
    found: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
    for key in problem.keys:
        size = _typical_size(problem.reference[key])
        if size == 0:
            continue
        for state, kept in zip((problem.reference, problem.candidate), found, strict=True):
            for (name, _), features in zip(problem.axes[key], _of_tensor(problem, key, state[key], size), strict=True):
                kept.setdefault(name, []).append(features)
    joined = [{name: torch.cat(parts, -1) for name, parts in kept.items()} for kept in found]
    for name, a in joined[0].items():
        joined[0][name], joined[1][name] = _standardised(a, joined[1][name])
    return joined[0], joined[1]


def _of_tensor(problem: Problem, key: str, tensor: Tensor, size: float) -> list[Tensor]:
    """For every axis of a tensor the means over its units' entries; of a large one some rows at a time."""
    axes = problem.axes[key]
    moved = _moved_dims(problem, key)
    parts: tuple[Tensor, ...] = (tensor,)
    if tensor.numel() > LARGE and all(axis.layout is None for _, axis in axes):
        parts = torch.split(tensor, max(1, LARGE * len(tensor) // tensor.numel()))
        moved |= {0}
    means: list[list[Tensor]] = [[] for _ in axes]
    for part in parts:
        by_function = [
            [_means(len(problem.spec.shape(name)), axis, values, moved) for name, axis in axes]
            for values in _functions(part, size)
        ]
        for kept, features in zip(means, zip(*by_function, strict=True), strict=True):
            kept.append(torch.cat(features, -1))
    return [
        torch.cat(kept)
        if axis.dim == 0
        else sum((each * (len(part) / len(tensor)) for each, part in zip(kept, parts, strict=True)), torch.zeros(()))
        for (_, axis), kept in zip(axes, means, strict=True)
    ]


def _typical_size(tensor: Tensor) -> float:
    """The median size of the entries that are not zero: what a few huge ones do not change. 0 where all are zero."""
    flat = tensor.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLE)].abs()
    if not bool((sample > 0).any()):
        sample = flat.abs()
    sample = sample[sample > 0]
    return float(sample.median()) if len(sample) else 0.0


def _functions(tensor: Tensor, size: float) -> Iterator[Tensor]:
    """Bounded functions of the entries, so that no entry hides the others; four of them, odd and even."""
    bounded = tensor / size
    bounded /= bounded.abs().add_(1)
    yield bounded
    square = bounded.square()
    yield square
    yield square.mul_(bounded)
    yield bounded.abs_()


def _means(depth: int, axis: Axis, tensor: Tensor, moved: frozenset[int]) -> Tensor:
    """The means over the entries of units, kept apart along dimensions that nothing moves: (*shape, features).

    Args:
        depth: how many dimensions the group's shape has.
        axis: of the group.
        tensor: that the axis lies in.
        moved: its dimensions in which some group lies.
    """
    named = {axis.dim} if axis.layout is None else axis.layout.dims
    view = axis.view(tensor.contiguous())
    free = [dim for dim in range(tensor.dim()) if dim not in named]
    first = view.dim() - len(free)
    # Outer dimensions stay in front: units, what the layout leaves in place, then the tensor's other dimensions.
    averaged = [*range(depth, first), *(first + at for at, dim in enumerate(free) if dim in moved)]
    means = view.mean(averaged) if averaged else view
    means = means.reshape(*view.shape[:depth], -1)
    entries = means.shape[-1]
    if entries > _STRETCHES:
        stretch = math.ceil(entries / _STRETCHES)
        means = torch.stack([part.mean(-1) for part in torch.split(means, stretch, -1)], -1)
    return means.double().cpu()


def _moved_dims(problem: Problem, key: str) -> frozenset[int]:
    dims: set[int] = set()
    for name, axis in problem.axes[key]:
        if not problem.spec.groups[name].frozen:
            dims |= {axis.dim} if axis.layout is None else axis.layout.dims
    return frozenset(dims)


def _standardised(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Features in units of their deviation between the first model's units; those that tell no units apart left out."""
    rows = a.flatten(0, -2)
    deviation = rows.std(0, correction=0)
    told = deviation > _ROUNDING * rows.abs().amax(0)
    if not bool(told.any()):
        return torch.zeros_like(a[..., :1]), torch.zeros_like(b[..., :1])
    return a[..., told] / deviation[told], b[..., told] / deviation[told]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs of units in the same block: shape (blocks, n, n)."""
    squares = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None, :] - 2 * a @ b.mT
    return squares.clamp_(min=0)
