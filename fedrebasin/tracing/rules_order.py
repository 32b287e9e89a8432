"""Rules of operators to which the order of the entries along an axis matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.parts import UNIT, Tree
from fedrebasin.tracing.registry import Call, Value, register_rule

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
    "aten.unfold",
    "aten.diff",
)
def ordered(call: Call, x: Value, *args: Any, **kwargs: Any) -> list[Axes]:
    """The order along some dimensions matters: pin those that the operator names, or all."""
    dims = _named_dims(call.operator, x, args, kwargs)
    call.pin([x.axes[dim] for dim in dims], "order matters")
    call.mix(x, *dims)
    return [
        tuple(
            axis if dim < x.dim and dim not in dims else call.new(size, "order matters")
            for dim, (axis, size) in enumerate(zip([*x.axes, *[UNIT] * (len(shape) - x.dim)], shape, strict=True))
        )
        for shape in call.shapes
    ]


def _named_dims(operator: str, x: Value, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    name = operator.split(".")[1].rstrip("_")
    place = {"roll": 1, "flip": 0, "topk": 1, "rot90": 1}.get(name, 0)
    dims = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else None))
    if name in ("fliplr", "flipud") or dims is None or dims == [] or isinstance(dims, bool):
        dims = [-1] if name in ("sort", "argsort", "topk", "diff") and dims is None else range(x.dim)
    return {dim % x.dim for dim in ([dims] if isinstance(dims, int) else dims)}


@register_rule("aten.tril", "aten.triu")
def triangle(call: Call, x: Value, *_: Any) -> Axes:
    """The last two dimensions are ordered."""
    call.pin(x.axes[-2:], "order matters")
    call.mix(x, -1)
    call.mix(x, -2)
    return x.axes
