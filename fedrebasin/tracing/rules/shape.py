"""Rules of operators that rearrange axes: views, permutations, cuts and concatenations."""

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.algebra import UNIT, Part, Pinned, Tree, case, concat, factorise, product, resolve
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


def reshape_axes(call: Call, axes: Sequence[Tree], shape: Sequence[int]) -> Axes:
    """Row-major reshape: runs of dimensions with the same product on both sides are merged, then divided anew."""
    found: list[Tree] = []
    before, after = 0, 0
    sizes = [axis.size for axis in axes]
    while before < len(sizes) or after < len(shape):
        if before < len(sizes) and sizes[before] == 1:
            before += 1
            continue
        if after < len(shape) and shape[after] == 1:
            found.append(UNIT)
            after += 1
            continue
        first_in, first_out = before, after
        taken, given = sizes[before], shape[after]
        before, after = before + 1, after + 1
        while taken != given:
            if taken < given:
                taken *= sizes[before]
                before += 1
            else:
                given *= shape[after]
                after += 1
        found += factorise(product(*axes[first_in:before]), shape[first_out:after], call.operator)
    return tuple(found)


@register_rule(
    "aten.view",
    "aten.reshape",
    "aten.flatten",
    "aten.unflatten",
    "aten._unsafe_view",
    "aten.view_as",
    "aten.ravel",
    "aten.squeeze",
    "aten.unsqueeze",
    "aten.view_copy",
    "aten._reshape_alias",
    "aten.atleast_1d",
    "aten.reshape_as",
)
def reshape(call: Call, x: Value, *_: Any, **__: Any) -> Axes:
    """The new shape says it all."""
    return reshape_axes(call, x.axes, call.shape)


@register_rule("aten.permute", "aten.permute_copy")
def permute(call: Call, x: Value, dims: Sequence[int]) -> Axes:
    """Axes in another order."""
    return tuple(x.axes[dim] for dim in dims)


@register_rule("aten.movedim", "aten.moveaxis")
def movedim(call: Call, x: Value, source: int | Sequence[int], destination: int | Sequence[int]) -> Axes:
    """Some axes to other places, the rest in order."""
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    moved = {target % x.dim: x.axes[place] for place, target in zip(sources, targets, strict=True)}
    taken = {place % x.dim for place in sources}
    rest = iter(axis for dim, axis in enumerate(x.axes) if dim not in taken)
    return tuple(moved[dim] if dim in moved else next(rest) for dim in range(x.dim))


@register_rule("aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.transpose_copy")
def transpose(call: Call, x: Value, first: int, second: int) -> Axes:
    """Two axes swapped."""
    axes = list(x.axes)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@register_rule("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint", "aten.matrix_H")
def turned(call: Call, x: Value) -> Axes:
    """The last two axes swapped."""
    return x.axes if x.dim < 2 else (*x.axes[:-2], x.axes[-1], x.axes[-2])


@register_rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(call: Call, x: Value, *_: Any, **__: Any) -> Axes:
    """Size 1 becomes an axis along which all is equal."""
    axes = (*[UNIT] * (len(call.shape) - x.dim), *x.axes)
    return tuple(call.new(size) if axis.size != size else axis for axis, size in zip(axes, call.shape, strict=True))


@register_rule("aten.broadcast_tensors")
def broadcast_tensors(call: Call, tensors: Sequence[Value]) -> list[Axes]:
    """Each expanded to the common shape."""
    return [expand(call, value) for value in tensors]


@register_rule("aten.repeat", "aten.tile")
def repeat(call: Call, x: Value, repeats: Sequence[int]) -> Axes:
    """Copies one behind the other: an outer index along which all is equal."""
    axes = (*[UNIT] * (len(call.shape) - x.dim), *x.axes)
    return tuple(
        axis if axis.size == size else product(call.new(size // axis.size), axis)
        for axis, size in zip(axes, call.shape, strict=True)
    )


@register_rule("aten.repeat_interleave")
def repeat_interleave(call: Call, x: Value, repeats: Any, dim: int | None = None, **_: Any) -> Axes:
    """Every unit several times in a row: an inner index along which all is equal."""
    if not isinstance(repeats, int):
        raise NotImplementedError("repeats that depend on data")
    axes = list(x.axes) if dim is not None else [product(*x.axes)]
    dim = dim or 0
    axes[dim] = product(axes[dim], call.new(repeats))
    return tuple(axes)


@register_rule("aten.select", "aten.select_copy")
def select(call: Call, x: Value, dim: int, index: int) -> Axes:
    """One entry along a dimension."""
    axes = call.narrow(x, dim, index % x.shape[dim], 1)
    return tuple(axis for at, axis in enumerate(axes) if at != dim % x.dim)


@register_rule("aten.narrow", "aten.narrow_copy")
def narrow(call: Call, x: Value, dim: int, start: int, length: int) -> Axes:
    """A run along a dimension."""
    return call.narrow(x, dim, start % x.shape[dim] if start != x.shape[dim] else start, length)


@register_rule("aten.slice", "aten.slice_copy")
def slice_(call: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Axes:
    """A run along a dimension, or every ``step``-th entry of it."""
    size = x.shape[dim]
    positions = range(size)[slice(start, end, step)]
    if step == 1:
        return call.narrow(x, dim, positions.start, len(positions))
    axes = list(x.axes)
    first = positions.start // step
    if size % step or len(positions) != size // step - first:
        axes[dim] = call.some(axes[dim], positions)
        return tuple(axes)
    outer, inner = call.divide(axes[dim], size // step, step)
    axes[dim : dim + 1] = [outer, inner] if dim >= 0 else []
    if dim < 0:
        axes[dim % x.dim : dim % x.dim] = [outer, inner]
    dim %= x.dim
    axes = list(call.narrow(Value(tuple(axes)), dim + 1, positions.start % step, 1))
    del axes[dim + 1]
    return call.narrow(Value(tuple(axes)), dim, first, len(positions))


@register_rule(
    "aten.split", "aten.chunk", "aten.split_with_sizes", "aten.tensor_split", "aten.unsafe_chunk", "aten.unsafe_split"
)
def split(call: Call, x: Value, _sizes: Any = None, dim: int = 0, **__: Any) -> list[Axes]:
    """Runs along a dimension."""
    found, start = [], 0
    for shape in call.shapes:
        found.append(call.narrow(x, dim, start, shape[dim]))
        start += shape[dim]
    return found


@register_rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call, x: Value, dim: int = 0) -> list[Axes]:
    """All entries along a dimension."""
    return [select(call, x, dim, index) for index in range(x.shape[dim])]


@register_rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Axes:
    """One behind the other along a dimension, tied along the others."""
    tensors = [value for value in tensors if value.shape != (0,)]
    dim %= tensors[0].dim
    axes = list(tensors[0].axes)
    for value in tensors[1:]:
        for other, axis in enumerate(value.axes):
            if other != dim:
                axes[other] = call.tie(axes[other], axis)
    axes[dim] = concat(*(UNIT if value.shape[dim] == 1 else value.axes[dim] for value in tensors))
    return tuple(axes)


@register_rule("aten.stack")
def stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Axes:
    """Along a new dimension, whose entries may have other units each."""
    dim %= tensors[0].dim + 1
    if len(tensors) == 1:
        return (*tensors[0].axes[:dim], UNIT, *tensors[0].axes[dim:])
    selector = Part(len(tensors), Pinned("its entries are told apart", call.operator))
    columns = [[resolve(axis) for axis in column] for column in zip(*(value.axes for value in tensors), strict=True)]
    axes = [case(selector, column) for column in columns]
    return (*axes[:dim], selector, *axes[dim:])


@register_rule("aten.meshgrid")
def meshgrid(call: Call, tensors: Sequence[Value], **_: Any) -> list[Axes]:
    """Each varies along its own dimension only."""
    return [
        tuple(value.axes[0] if at == own and value.dim else call.new(size) for at, size in enumerate(call.shape))
        for own, value in enumerate(tensors)
    ]


@register_rule("aten.glu")
def glu(call: Call, x: Value, dim: int = -1) -> Axes:
    """The first half times the sigmoid of the second."""
    half = x.shape[dim] // 2
    return call.broadcast(Value(call.narrow(x, dim, 0, half)), Value(call.narrow(x, dim, half, half)))


@register_rule("aten.pixel_shuffle", "aten.channel_shuffle", "aten.native_channel_shuffle", "aten.pixel_unshuffle")
def shuffle(call: Call, x: Value, factor: int) -> Axes:
    """Channels to space, space to channels, or the transposition of channels by groups."""
    *batch, channel = x.axes[: x.dim - 2] if "pixel" in call.operator else x.axes[:2]
    if "channel" in call.operator:
        outer, inner = call.divide(channel, factor, channel.size // factor)
        return (*batch, product(inner, outer), *x.axes[2:])
    height, width = x.axes[-2:]
    if "unshuffle" in call.operator:
        top, below = call.divide(height, height.size // factor, factor)
        left, right = call.divide(width, width.size // factor, factor)
        return (*batch, product(channel, below, right), top, left)
    outer, below, right = factorise(channel, (channel.size // factor**2, factor, factor), call.operator)
    return (*batch, outer, product(height, below), product(width, right))


@register_rule(
    "aten.pad",
    "aten.constant_pad_nd",
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.reflection_pad3d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    "aten.replication_pad3d",
)
def pad(call: Call, x: Value, pads: Sequence[int], mode: str = "constant", *_: Any, **__: Any) -> Axes:
    """New entries before and behind; with constants they are units of their own."""
    axes = list(x.axes)
    for place in range(len(pads) // 2):
        dim, before, behind = x.dim - 1 - place, pads[2 * place], pads[2 * place + 1]
        if not before and not behind:
            continue
        if (
            mode == "constant"
            and ("constant" in call.operator or ".pad." in call.operator)
            and min(before, behind) >= 0
        ):
            axes[dim] = concat(_run(call, before), axes[dim] if axes[dim].size > 1 else UNIT, _run(call, behind))
        else:
            call.mix(x, dim)
            call.pin(axes[dim], "padded by its own entries")
            axes[dim] = call.new(call.shape[dim], "padded by its own entries")
    return tuple(axes)


def _run(call: Call, size: int) -> Tree:
    return concat() if size == 0 else call.new(size)


#: Rules whose results are the entries of their argument, in another arrangement: nothing is read by them.
REARRANGING = frozenset([reshape, permute, movedim, transpose, turned, expand, select, narrow, slice_, split, unbind])
