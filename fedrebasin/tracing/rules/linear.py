"""Rules of contractions: matrix products, convolutions, einsum, attention."""

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.algebra import UNIT, Part, Tree, leaves, product, resolve, tell_apart, tie
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]
KERNEL = "position in the kernel"
SPACE = "position in space"


@register_rule("aten.linear")
def linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Axes:
    """``x (..., in) @ weight (out, in).T + bias (out)``."""
    call.tie(x.axes[-1], weight.axes[-1])
    call.together(*x.axes[:-1], *weight.axes)
    out = weight.axes[:-1]
    if bias is not None and bias.dim:
        tie(out[0], bias.axes[0], call.operator)
    return (*x.axes[:-1], *out)


@register_rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot", "aten.__matmul__")
def matmul(call: Call, a: Value, b: Value) -> Axes:
    """``a (..., n, k) @ b (..., k, m)``; vectors as in torch.matmul."""
    rows = a.axes[-2:-1]
    columns = b.axes[-1:] if b.dim > 1 else ()
    contracted = call.tie(a.axes[-1], b.axes[-2] if b.dim > 1 else b.axes[-1])
    batch = call.broadcast(Value(a.axes[:-2]), Value(b.axes[:-2]))
    call.together(*batch, *rows, contracted, *columns)
    return (*batch, *rows, *columns)


@register_rule("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addbmm")
def addmm(call: Call, bias: Value, a: Value, b: Value, **_: Any) -> Axes:
    """``bias + a @ b``."""
    axes = matmul(call, a, b)
    if len(axes) > len(call.shape):
        axes = axes[len(axes) - len(call.shape) :]
    return call.broadcast(Value(axes), bias)


@register_rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_matmul(call: Call, x: Value, weights: Value, ends: Value | None = None, *_: Any, **__: Any) -> Axes:
    """Runs of rows, each with a matrix of its own: ``x (rows, in) @ weights[run] (in, out)``."""
    if ends is None or x.dim != 2 or weights.dim != 3:
        raise NotImplementedError("runs of columns")
    call.pin(x.axes[0], "rows are picked by index")
    call.look_up(weights.axes[0], ends, by=(x.axes[0],))
    contracted = call.tie(x.axes[1], weights.axes[1])
    call.together(x.axes[0], contracted, weights.axes[2])
    return (x.axes[0], weights.axes[2])


@register_rule("aten.outer", "aten.ger")
def outer(call: Call, a: Value, b: Value) -> Axes:
    """Every entry of one vector with every entry of the other."""
    return (*a.axes, *b.axes)


@register_rule("aten.cdist", "aten._cdist_forward", "aten._euclidean_dist")
def distances(call: Call, a: Value, b: Value, *_: Any) -> Axes:
    """Distances of all pairs: ``a (..., n, k)`` and ``b (..., m, k)`` to ``(..., n, m)``."""
    contracted = call.tie(a.axes[-1], b.axes[-1])
    batch = call.broadcast(Value(a.axes[:-2]), Value(b.axes[:-2]))
    call.together(*batch, a.axes[-2], contracted, b.axes[-2])
    return (*batch, a.axes[-2], b.axes[-2])


@register_rule("aten.bilinear")
def bilinear(call: Call, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Axes:
    """``out[o] = x[i] weight[o, i, j] y[j] + bias[o]``."""
    call.tie(x.axes[-1], weight.axes[1])
    call.tie(y.axes[-1], weight.axes[2])
    batch = call.broadcast(Value(x.axes[:-1]), Value(y.axes[:-1]))
    call.together(*batch, *weight.axes)
    if bias is not None:
        call.tie(bias.axes[0], weight.axes[0])
    return (*batch, weight.axes[0])


@register_rule("aten.einsum")
def einsum(call: Call, equation: str, operands: Sequence[Value], **_: Any) -> Axes:
    """One axis for each letter; an ellipsis stands for broadcast dimensions."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    dots = [value.dim - len(term.replace("...", "")) for term, value in zip(terms, operands, strict=True)]
    spread = max(dots)
    names = [_letters(term, number, spread) for term, number in zip(terms, dots, strict=True)]
    axes: dict[str, Tree] = {}
    for letters, value in zip(names, operands, strict=True):
        for letter, axis in zip(letters, value.axes, strict=True):
            axes[letter] = call.tie(axes.get(letter, UNIT), axis)
    if arrow:
        result = _letters(right, spread, spread)
    else:
        flat = [letter for letters in names for letter in letters]
        unnamed = sorted({letter for letter in flat if letter.isdigit()})
        result = unnamed + sorted(letter for letter in set(flat) - set(unnamed) if flat.count(letter) == 1)
    call.together(*axes.values())
    return tuple(axes[letter] for letter in result)


def _letters(term: str, dots: int, spread: int) -> list[str]:
    before, ellipsis, after = term.partition("...")
    middle = [str(number) for number in range(spread - dots, spread)] if ellipsis else []
    return [*before, *middle, *after]


@register_rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten._convolution_mode")
def convolution(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Axes:
    """``weight (groups x out, in, *kernel)`` on ``x (batch, groups x in, *space)``."""
    return convolve(call, x, weight, bias, stride, padding, dilation, False, 0, groups)


@register_rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Axes:
    """``weight (groups x in, out, *kernel)`` on ``x (batch, groups x in, *space)``."""
    return convolve(call, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


@register_rule("aten.convolution", "aten._convolution")
def convolve(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Axes:
    """What every convolution decomposes into; where the kernel has size 1, positions are not told apart."""
    rank = weight.dim - 2
    channel = x.dim - rank - 1
    call.pin(weight.axes[2:], KERNEL)
    space = [
        axis if kernel == step == 1 and not pad else call.new(size, SPACE)
        for axis, kernel, step, pad, size in zip(
            x.axes[channel + 1 :],
            weight.shape[2:],
            _each(stride, rank),
            _each(0 if isinstance(padding, str) else padding, rank),
            call.shape[channel + 1 :],
            strict=True,
        )
    ]
    kept = [axis for axis, before in zip(space, x.axes[channel + 1 :], strict=True) if axis is before]
    call.pin((axis for axis in x.axes[channel + 1 :] if not any(axis is one for one in kept)), SPACE)
    group_of_input, within = call.divide(x.axes[channel], groups, x.axes[channel].size // groups)
    first, second = call.divide(weight.axes[0], groups, weight.axes[0].size // groups)
    inputs, outputs = (second, weight.axes[1]) if transposed else (weight.axes[1], second)
    call.tie(first, group_of_input)
    call.tie(inputs, within)
    selector = resolve(first)
    if isinstance(selector, Part) and selector.pinned is not None and selector.cases:
        # Where groups are told apart already, each gives units of its own.
        tell_apart(selector, call.operator, leaves(outputs))
    call.together(*x.axes[:channel], first, inputs, outputs, *kept)
    out = product(first, outputs)
    if bias is not None:
        call.tie(out, bias.axes[0])
    return (*x.axes[:channel], out, *space)


def _each(sizes: Any, rank: int) -> Sequence[int]:
    """One number for every dimension."""
    found: list[int] = [sizes] if isinstance(sizes, int) else list(sizes)
    return found * rank if len(found) == 1 else found


@register_rule("aten.scaled_dot_product_attention")
def attention(
    call: Call,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Axes:
    """``softmax(query (..., L, E) @ key (..., S, E).T + mask) @ value (..., S, V)``."""
    repeats: Tree = UNIT
    batch = list(query.axes[:-2])
    if enable_gqa and batch and batch[-1].size != key.axes[-3].size:
        shared = key.axes[-3].size
        batch[-1], repeats = call.divide(batch[-1], shared, batch[-1].size // shared)
    batch = list(call.broadcast(Value(tuple(batch)), Value(key.axes[:-2]), Value(value.axes[:-2])))
    features = call.tie(query.axes[-1], key.axes[-1])
    rows, columns = query.axes[-2], call.tie(key.axes[-2], value.axes[-2])
    if is_causal:
        call.pin((rows, columns), "order in time")
    heads = product(batch[-1], repeats) if batch else UNIT
    if attn_mask is not None:
        call.broadcast(attn_mask, Value((*batch[:-1], heads, rows, columns) if batch else (rows, columns)))
    call.together(*batch, repeats, rows, columns, features)
    call.together(*batch, repeats, rows, columns, value.axes[-1])
    call.together(*batch, repeats, rows)
    return (*batch[:-1], *([heads] if batch else []), rows, value.axes[-1])
