"""Rules of operators that act on every entry alone, and of those that create tensors."""

from typing import Any

from fedrebasin.tracing.algebra import Tree
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


def tensors(arguments: Any) -> list[Value]:
    """The tensors among nested arguments."""
    if isinstance(arguments, Value):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, list | tuple):
        return [value for argument in arguments for value in tensors(argument)]
    return []


@register_rule(
    "pointwise",
    "aten.hardswish",
    "aten.relu6",
    "aten.to",
    "aten._to_copy",
    "aten.contiguous",
    "aten.type_as",
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh_copy",
    "aten.lift_fresh",
    "aten.dropout",
    "aten.native_dropout",
    "aten.alpha_dropout",
    "aten.bernoulli",
    "aten.fill",
    "aten.zero",
    "aten.copy",
    "aten.softplus",
    "aten.hardtanh",
    "aten.rrelu",
    "aten.rrelu_with_noise",
    "aten.celu",
    "aten.float_power",
    "aten.true_divide",
    "aten.divide",
    "aten.multiply",
    "aten.subtract",
    "aten.square",
    "aten.masked_fill",
    "aten.where",
    "aten.clone",
    "aten.float",
    "aten.double",
    "aten.half",
    "aten.__and__",
    "aten.__or__",
    "aten.__xor__",
    "aten.masked_fill_",
    "aten.isin",
    "aten.requires_grad",
    "aten.real",
    "aten.imag",
    "aten.conj",
    "aten._conj",
    "aten._conj_physical",
    "aten.resolve_conj",
    "aten.resolve_neg",
    "aten._neg_view",
    "aten.complex",
    "aten.polar",
    "aten.angle",
    "aten.abs",
)
def elementwise(call: Call, *args: Any, **kwargs: Any) -> list[Axes]:
    """Every entry of the result depends on one entry of each argument, sizes 1 broadcast."""
    return [call.broadcast(*tensors(args), *tensors(kwargs))] * len(call.shapes)


@register_rule("aten.view_as_real", "aten.view_as_real_copy")
def view_as_real(call: Call, x: Value) -> Axes:
    """The real and the imaginary part along a new dimension."""
    return (*x.axes, call.new(2, "real and imaginary part"))


@register_rule("aten.view_as_complex", "aten.view_as_complex_copy")
def view_as_complex(call: Call, x: Value) -> Axes:
    """The last dimension holds the real and the imaginary part."""
    call.pin(x.axes[-1], "real and imaginary part")
    return x.axes[:-1]


@register_rule("aten.feature_dropout", "aten.feature_alpha_dropout")
def feature_dropout(call: Call, x: Value, *_: Any) -> Axes:
    """Whole channels are dropped at random."""
    if x.dim > 2:
        call.together(*x.axes[:2])
    return x.axes


@register_rule("aten.prelu")
def prelu(call: Call, x: Value, weight: Value) -> Axes:
    """The slope belongs to dimension 1."""
    axes = list(x.axes)
    if x.dim > 1:
        axes[1] = call.tie(axes[1], weight.axes[0] if weight.dim else axes[1])
    return tuple(axes)


@register_rule(
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.empty",
    "aten.scalar_tensor",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.empty_like",
    "aten.rand",
    "aten.randn",
    "aten.rand_like",
    "aten.randn_like",
    "aten.empty_strided",
    "aten.empty_permuted",
)
def uniform(call: Call, *_: Any, **__: Any) -> Axes:
    """All entries are equal, or drawn alike: no axis is tied to anything."""
    return tuple(call.new(size) for size in call.shape)


@register_rule("aten.arange", "aten.linspace", "aten.logspace", "aten.eye", "aten.randperm", "aten.tril_indices")
def counted(call: Call, *_: Any, **__: Any) -> Axes:
    """The entries count positions."""
    return tuple(call.new(size, "position matters") for size in call.shape)
