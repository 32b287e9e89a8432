"""Rules of look-ups by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.parts import UNIT, Tree
from fedrebasin.tracing.registry import Call, Value, register_rule
from fedrebasin.tracing.rules_elementwise import tensors

Axes = tuple[Tree, ...]
PICKED = "rows are picked by index"


@register_rule("aten.embedding")
def embedding(call: Call, weight: Value, indices: Value, *_: Any, **__: Any) -> Axes:
    """``weight[indices]``."""
    call.pin(weight.axes[0], PICKED)
    return (*indices.axes, weight.axes[1])


@register_rule("aten.index", "aten._unsafe_index")
def index(call: Call, x: Value, indices: Sequence[Value | None]) -> Axes:
    """Advanced indexing: the indexed dimensions give way to those of the indices."""
    picked = [dim for dim, value in enumerate(indices) if value is not None]
    if call.shape == () or any(value is not None and not value.dim for value in indices):
        raise NotImplementedError("indexing by a single number that depends on data")
    call.pin([x.axes[dim] for dim in picked], PICKED)
    found = call.broadcast(*(value for value in indices if value is not None))
    kept = [axis for dim, axis in enumerate(x.axes) if dim not in picked]
    neighbours = picked == list(range(picked[0], picked[-1] + 1))
    place = picked[0] if neighbours else 0
    axes = (*kept[:place], *found, *kept[place:])
    if tuple(axis.size for axis in axes) != call.shape:
        raise NotImplementedError("a mask as an index")
    return axes


@register_rule("aten.index_select")
def index_select(call: Call, x: Value, dim: int, indices: Value) -> Axes:
    """Some entries along a dimension."""
    call.pin(x.axes[dim], PICKED)
    axes = list(x.axes)
    axes[dim] = indices.axes[0] if indices.dim else UNIT
    return tuple(axes)


@register_rule("aten.gather", "aten.take_along_dim")
def gather(call: Call, x: Value, dim: int | Value, indices: Any, *_: Any, **__: Any) -> Axes:
    """``x[i, indices[i, j]]``."""
    if isinstance(dim, Value):
        return gather(call, x, indices, dim)
    call.pin(x.axes[dim], PICKED)
    axes = []
    for place, (own, other) in enumerate(zip(x.axes, indices.axes, strict=True)):
        if place == dim % x.dim:
            axes.append(other)
        elif own.size == other.size or 1 in (own.size, other.size):
            axes.append(call.tie(own, other))
        else:
            call.pin((own, other), PICKED)
            axes.append(other)
    return tuple(axes)


@register_rule(
    "aten.index_put",
    "aten._unsafe_index_put",
    "aten.index_copy",
    "aten.index_add",
    "aten.index_fill",
    "aten.scatter",
    "aten.scatter_add",
    "aten.scatter_reduce",
    "aten.masked_scatter",
    "aten.slice_scatter",
    "aten.select_scatter",
)
def write(call: Call, x: Value, *args: Any, **kwargs: Any) -> Axes:
    """Entries written by position: everything stays where it is."""
    for value in tensors([x, args, kwargs]):
        call.pin(value, "entries are written by index")
        call.together()
    return x.axes


@register_rule("aten.one_hot")
def one_hot(call: Call, x: Value, *_: Any) -> Axes:
    """Classes are told apart by number."""
    return (*x.axes, call.new(call.shape[-1], PICKED))
