"""Rules of look-ups by index."""

from collections.abc import Sequence
from typing import Any

import torch

from fedrebasin.tracing.algebra import UNIT, Tree
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.rules.elementwise import tensors
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]
PICKED = "rows are picked by index"


@register_rule("aten.embedding")
def embedding(call: Call, weight: Value, indices: Value, *_: Any, **__: Any) -> Axes:
    """``weight[indices]``."""
    call.pin(weight.axes[0], PICKED)
    return (*indices.axes, weight.axes[1])


@register_rule("aten.embedding_bag", "aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding_bag(call: Call, weight: Value, indices: Value, offsets: Value | None = None, *rest: Any) -> list[Axes]:
    """Sums, means or maxima of rows; the other results count rows."""
    call.pin(weight.axes[0], PICKED)
    for value in tensors([indices, offsets, rest]):
        call.pin(value, "places in bags")
    call.together(weight.axes[1])
    counts = [tuple(call.new(size, "places in bags") for size in shape) for shape in call.shapes]
    return [(counts[0][0], weight.axes[1]), *counts[1:]]


@register_rule("aten.index", "aten._unsafe_index")
def index(call: Call, x: Value, indices: Sequence[Value | None]) -> Axes:
    """Advanced indexing: the indexed dimensions give way to those of the indices."""
    picked = picked_dims(x, indices)
    given = [value for value in indices if value is not None]
    if any(value.dtype == torch.bool for value in given):
        # How many entries a mask lets through, and which, is told by their places.
        call.pin([x.axes[dim] for dim in picked], PICKED)
        call.pin([axis for value in given for axis in value.axes], PICKED)
        call.together(*(axis for dim, axis in enumerate(x.axes) if dim not in picked))
        found: Axes = (call.new(call.shape[picked[0] if _neighbours(picked) else 0], PICKED),)
    else:
        if call.shape == () or any(not value.dim for value in given):
            raise NotImplementedError("indexing by a single number that depends on data")
        found = call.broadcast(*given)
        for dim in picked:
            call.look_up(x.axes[dim], given[0]) if len(picked) == 1 else call.pin(x.axes[dim], PICKED)
    return replaced(x.axes, picked, found)


def picked_dims(x: Value, indices: Sequence[Value | None]) -> list[int]:
    """The dimensions that are indexed: a mask takes as many as it has."""
    picked: list[int] = []
    dim = 0
    for value in indices:
        width = value.dim if value is not None and value.dtype == torch.bool else 1
        if value is not None:
            picked += range(dim, dim + width)
        dim += width
    return picked


def _neighbours(picked: Sequence[int]) -> bool:
    return list(picked) == list(range(picked[0], picked[-1] + 1))


def replaced(axes: Sequence[Tree], picked: Sequence[int], found: Axes) -> Axes:
    """The axes that stay, and those of the indices: in their place if they were neighbours, in front otherwise."""
    kept = [axis for dim, axis in enumerate(axes) if dim not in picked]
    place = picked[0] if _neighbours(picked) else 0
    return (*kept[:place], *found, *kept[place:])


@register_rule("aten.index_select")
def index_select(call: Call, x: Value, dim: int, indices: Value) -> Axes:
    """Some entries along a dimension."""
    call.look_up(x.axes[dim], indices)
    axes = list(x.axes)
    axes[dim] = indices.axes[0] if indices.dim else UNIT
    return tuple(axes)


@register_rule("aten.gather", "aten.take_along_dim")
def gather(call: Call, x: Value, dim: int | Value, indices: Any, *_: Any, **__: Any) -> Axes:
    """``x[i, indices[i, j]]``."""
    if isinstance(dim, Value):
        return gather(call, x, indices, dim)
    call.pin(x.axes[dim], PICKED)
    return beside(call, x, dim, indices)


def beside(call: Call, x: Value, dim: int, other: Value) -> Axes:
    """The axes of a tensor that lies beside ``x`` in all dimensions but one, perhaps shorter. Returns its axes."""
    axes = []
    for place, (own, others) in enumerate(zip(x.axes, other.axes, strict=True)):
        if place == dim % x.dim:
            axes.append(others)
        elif own.size == others.size:
            axes.append(call.tie(own, others))
        else:
            call.pin((own, others), PICKED)
            axes.append(others)
    return tuple(axes)


@register_rule("aten.nonzero", "aten.nonzero_static", "aten.argwhere")
def nonzero(call: Call, x: Value, *_: Any, **__: Any) -> Axes:
    """Positions come out."""
    call.pin(x, "positions are told apart")
    return tuple(call.new(size, "positions are told apart") for size in call.shape)


@register_rule("aten.one_hot")
def one_hot(call: Call, x: Value, *_: Any) -> Axes:
    """Classes are told apart by number."""
    return (*x.axes, call.new(call.shape[-1], PICKED))
