"""Rules of operators to which the order of the entries along an axis matters."""

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.algebra import UNIT, Tree
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


@register_rule(
    "aten.roll",
    "aten.flip",
    "aten.fliplr",
    "aten.flipud",
    "aten.rot90",
    "aten.cumsum",
    "aten.cumprod",
    "aten.cummax",
    "aten.cummin",
    "aten.logcumsumexp",
    "aten.sort",
    "aten.argsort",
    "aten.topk",
    "aten.diff",
    "aten.fft_fft",
    "aten.fft_ifft",
    "aten.fft_rfft",
    "aten.fft_irfft",
    "aten._fft_r2c",
    "aten._fft_c2c",
    "aten._fft_c2r",
    "prims.fft_r2c",
    "prims.fft_c2c",
    "prims.fft_c2r",
)
def ordered(call: Call, x: Value, *args: Any, **kwargs: Any) -> list[Axes]:
    """The order along some dimensions matters: pin those that the operator names, or all.

    Of sorted values it does not: they are the same whatever the order was.
    """
    dims = _named_dims(call.operator, x, args, kwargs)
    if not (len(call.used) == 2 and not call.used[1] and _name(call.operator) in ("sort", "topk")):
        call.pin([x.axes[dim] for dim in dims], "order matters")
    call.mix(x, *dims)
    return [
        tuple(
            axis if dim < x.dim and dim not in dims else call.new(size, "order matters")
            for dim, (axis, size) in enumerate(zip([*x.axes, *[UNIT] * (len(shape) - x.dim)], shape, strict=True))
        )
        for shape in call.shapes
    ]


def _name(operator: str) -> str:
    return operator.split(".")[1].rstrip("_")


def _named_dims(operator: str, x: Value, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    name = _name(operator)
    place = {
        "roll": 1,
        "flip": 0,
        "topk": 1,
        "rot90": 1,
        "fft_fft": 1,
        "fft_ifft": 1,
        "fft_rfft": 1,
        "fft_irfft": 1,
    }.get(name, 0)
    dims = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else None))
    if name in ("fliplr", "flipud") or dims is None or dims == [] or isinstance(dims, bool):
        last = name in ("sort", "argsort", "topk", "diff") or (name.startswith("fft_") and "2" not in name)
        dims = [-1] if last and dims is None else range(x.dim)
    return {dim % x.dim for dim in ([dims] if isinstance(dims, int) else dims)}


@register_rule("aten.unfold", "aten.unfold_copy")
def unfold(call: Call, x: Value, dim: int, size: int, step: int) -> Axes:
    """Windows along a dimension, as a new last dimension; side by side and without gaps it is a view."""
    dim %= max(x.dim, 1)
    whole, number = x.axes[dim], call.shape[dim]
    outer: Tree
    inner: Tree
    if size == whole.size:
        outer, inner = UNIT, whole
    elif size == step and number * size == whole.size:
        outer, inner = call.divide(whole, number, size)
    else:
        call.pin(whole, "order matters")
        call.mix(x, dim)
        outer, inner = call.new(number, "order matters"), call.new(size, "order matters")
    return (*x.axes[:dim], outer, *x.axes[dim + 1 :], inner)


@register_rule("aten.tril", "aten.triu")
def triangle(call: Call, x: Value, *_: Any) -> Axes:
    """The last two dimensions are ordered."""
    call.pin(x.axes[-2:], "order matters")
    call.mix(x, -1)
    call.mix(x, -2)
    return x.axes
