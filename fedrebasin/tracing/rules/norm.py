"""Rules of normalisations and reductions."""

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.algebra import UNIT, Tree, blocks
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


def _per_channel(call: Call, x: Value, *tensors: Any) -> None:
    for tensor in tensors:
        if isinstance(tensor, Value):
            call.tie(x.axes[1], tensor.axes[0])


@register_rule("aten.batch_norm", "aten.instance_norm", "aten.native_batch_norm", "aten.cudnn_batch_norm")
def batch_norm(
    call: Call,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    *_: Any,
    **__: Any,
) -> list[Axes]:
    """Each channel (dimension 1) on its own, over all that remains."""
    _per_channel(call, x, weight, bias, running_mean, running_var)
    call.together(x.axes[1])
    return [x.axes, *((x.axes[1] if shape == (x.shape[1],) else UNIT,) for shape in call.shapes[1:])]


@register_rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm", "aten.native_layer_norm")
def layer_norm(
    call: Call,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> list[Axes]:
    """Over the last dimensions; scale and shift have their shape."""
    own = len(normalized_shape)
    for tensor in (weight, bias):
        if isinstance(tensor, Value):
            call.broadcast(Value(x.axes[-own:]), tensor)
    call.together(*x.axes[:-own])
    return [x.axes, *((*x.axes[:-own], *([UNIT] * own)) for _ in call.shapes[1:])]


@register_rule("aten.group_norm")
def group_norm(
    call: Call, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, *_: Any, **__: Any
) -> Axes:
    """Over the channels of each group and all positions: groups move as blocks, channels inside each on their own."""
    _per_channel(call, x, weight, bias)
    for groups, _within in blocks(x.axes[1], x.shape[1] // num_groups, call.operator):
        call.together(x.axes[0], groups)
    return x.axes


@register_rule(
    "aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.softmin"
)
def softmax(call: Call, x: Value, dim: int, *_: Any, **__: Any) -> Axes:
    """Mixes along the dimension, in any order."""
    if x.dim:
        call.mix(x, dim)
    return x.axes


@register_rule("aten.cosine_similarity")
def cosine_similarity(call: Call, a: Value, b: Value, dim: int = 1, eps: float = 1e-8) -> Axes:
    """Element-wise product, summed along a dimension."""
    axes = call.broadcast(a, b)
    return tuple(axis for index, axis in enumerate(axes) if index != dim % len(axes))


@register_rule(
    "aten.sum",
    "aten.mean",
    "aten.amax",
    "aten.amin",
    "aten.var",
    "aten.std",
    "aten.prod",
    "aten.any",
    "aten.all",
    "aten.logsumexp",
    "aten.linalg_vector_norm",
    "aten.norm",
    "aten.nansum",
    "aten.nanmean",
    "aten.count_nonzero",
    "aten.var_mean",
    "aten.std_mean",
    "aten.aminmax",
    "aten.frobenius_norm",
)
def reduction(call: Call, x: Value, *args: Any, **kwargs: Any) -> list[Axes]:
    """The order of the entries along the reduced dimensions does not matter: read off the result which they are."""
    dims = _reduced(x, call.shape, args, kwargs)
    if len(call.shape) == x.dim:
        axes = tuple(UNIT if dim in dims else axis for dim, axis in enumerate(x.axes))
    else:
        axes = tuple(axis for dim, axis in enumerate(x.axes) if dim not in dims)
    return [axes] * len(call.shapes)


def _reduced(x: Value, shape: tuple[int, ...], args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    if not shape or all(size == 1 for size in shape):
        return set(range(x.dim))
    candidates = [kwargs["dim"]] if "dim" in kwargs else [arg for arg in args if not isinstance(arg, bool)]
    for candidate in reversed(candidates):
        dims = candidate if isinstance(candidate, list | tuple) else [candidate]
        if not dims or not all(isinstance(dim, int) and -x.dim <= dim < x.dim for dim in dims):
            continue
        found = {dim % x.dim for dim in dims}
        kept = tuple(1 if dim in found else size for dim, size in enumerate(x.shape))
        if shape in (kept, tuple(size for dim, size in enumerate(x.shape) if dim not in found)):
            return found
    raise NotImplementedError("which dimensions are reduced")


@register_rule("aten.max", "aten.min")
def extreme(call: Call, x: Value, other: Any = None, *args: Any, **kwargs: Any) -> list[Axes]:
    """Of all entries, of two tensors, or along a dimension with the place where it was found."""
    if isinstance(other, Value):
        return [call.broadcast(x, other)]
    if other is None and not kwargs:
        return [()]
    return choose(call, x, kwargs.get("dim", other))


@register_rule("aten.argmax", "aten.argmin", "aten.median", "aten.mode", "aten.kthvalue", "aten.nanmedian")
def choose(call: Call, x: Value, dim: int | None = None, *_: Any, **__: Any) -> list[Axes]:
    """Positions come out: the order along the dimension matters."""
    if dim is None:
        call.pin(x, "positions are told apart")
        return [()] * len(call.shapes)
    if len(call.shapes) == 1 or call.used[1]:
        call.pin(x.axes[dim], "positions are told apart")
    keep = len(call.shape) == x.dim
    axes = tuple(UNIT if i == dim % x.dim else axis for i, axis in enumerate(x.axes) if keep or i != dim % x.dim)
    return [axes] * len(call.shapes)


@register_rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(call: Call, direction: Value, length: Value, dim: int = 0) -> list[Axes]:
    """``length * direction / |direction|``, the norm over all dimensions but one."""
    if length.dim == direction.dim:
        call.broadcast(direction, length)
    call.together(direction.axes[dim])
    return [direction.axes, *(length.axes for _ in call.shapes[1:])]
