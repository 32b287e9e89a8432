"""Rules of operators that write entries by their places: units along the other axes are none of their business."""

from collections.abc import Sequence
from typing import Any

import torch

from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.rules.elementwise import tensors
from fedrebasin.tracing.rules.index import Axes, beside, picked_dims, replaced
from fedrebasin.tracing.values import Value

WRITTEN = "entries are written by index"


@register_rule("aten.index_put", "aten._unsafe_index_put", "aten.index_put_", "aten._index_put_impl")
def index_put(call: Call, x: Value, indices: Sequence[Value | None], values: Value, *_: Any, **__: Any) -> Axes:
    """``x[indices] = values``; a mask of single entries with one value is element-wise."""
    given = [value for value in indices if value is not None]
    picked = picked_dims(x, indices)
    masked = [value for value in given if value.dtype == torch.bool]
    if masked and masked == given and len(given) == 1 and all(size == 1 for size in values.shape):
        for dim, axis in zip(picked, given[0].axes, strict=True):
            call.tie(x.axes[dim], axis)
        return x.axes
    call.pin([x.axes[dim] for dim in picked], WRITTEN)
    call.together(*(axis for dim, axis in enumerate(x.axes) if dim not in picked))
    if masked:
        call.pin([axis for value in given for axis in value.axes], WRITTEN)
        found = tuple(call.new(size, WRITTEN) for size in values.shape[:1])
        if len(masked) > 1 or values.dim != x.dim - len(picked) + 1:
            raise NotImplementedError("values of another shape behind a mask")
    else:
        found = call.broadcast(*given)
    call.broadcast(Value(replaced(x.axes, picked, found)), values)
    return x.axes


@register_rule("aten.index_add", "aten.index_copy", "aten.index_reduce")
def index_add(call: Call, x: Value, dim: int, indices: Value, source: Value, *_: Any, **__: Any) -> Axes:
    """``x[indices[j]] += source[j]`` along a dimension."""
    call.pin(x.axes[dim], WRITTEN)
    call.mix(x, dim)
    beside(call, x, dim, source)
    if indices.dim:
        call.tie(source.axes[dim], indices.axes[0])
    return x.axes


@register_rule("aten.index_fill")
def index_fill(call: Call, x: Value, dim: int, indices: Value, *_: Any) -> Axes:
    """One value at some entries along a dimension."""
    call.pin(x.axes[dim], WRITTEN)
    return x.axes


@register_rule("aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def scatter(call: Call, x: Value, dim: int, indices: Value, source: Any = None, *_: Any, **__: Any) -> Axes:
    """``x[i, indices[i, j]] = source[i, j]``."""
    if not x.dim or not indices.dim:
        raise NotImplementedError("scattering single numbers")
    call.pin(x.axes[dim], WRITTEN)
    call.mix(x, dim)
    beside(call, x, dim, indices)
    if isinstance(source, Value) and source.dim:
        for own, other in zip(indices.axes, source.axes, strict=True):
            if own.size == other.size:
                call.tie(own, other)
            else:
                call.pin((own, other), WRITTEN)
    return x.axes


@register_rule("aten.slice_scatter")
def slice_scatter(
    call: Call, x: Value, source: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Axes:
    """``x[start:end] = source`` along a dimension."""
    positions = range(x.shape[dim])[slice(start, end, step)]
    if step != 1 or not len(positions):
        raise NotImplementedError("writing every so many entries")
    for axis, other in zip(call.narrow(x, dim, positions.start, len(positions)), source.axes, strict=True):
        call.tie(axis, other)
    return x.axes


@register_rule("aten.select_scatter")
def select_scatter(call: Call, x: Value, source: Value, dim: int, index: int) -> Axes:
    """``x[index] = source`` along a dimension."""
    axes = call.narrow(x, dim, index % x.shape[dim], 1)
    call.broadcast(Value(tuple(axis for at, axis in enumerate(axes) if at != dim % x.dim)), source)
    return x.axes


@register_rule("aten.masked_scatter", "aten.put", "aten.fill_diagonal", "aten.diagonal_scatter")
def written_in_order(call: Call, x: Value, *args: Any, **kwargs: Any) -> Axes:
    """Entries written one after the other: everything stays where it is."""
    for value in tensors([x, args, kwargs]):
        call.pin(value, WRITTEN)
        call.together()
    return x.axes
