"""Rules of operators on planes: poolings, up-sampling, patches, and what is looked up in an image."""

from typing import Any

from fedrebasin.tracing.algebra import Tree, product
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.rules.elementwise import tensors
from fedrebasin.tracing.rules.linear import KERNEL, SPACE, convolve
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


@register_rule(
    "aten.adaptive_avg_pool1d",
    "aten.adaptive_avg_pool2d",
    "aten.adaptive_avg_pool3d",
    "aten.adaptive_max_pool1d",
    "aten.adaptive_max_pool2d",
    "aten.adaptive_max_pool3d",
    "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d",
    "aten.avg_pool1d",
    "aten.avg_pool2d",
    "aten.avg_pool3d",
    "aten.lp_pool1d",
    "aten.lp_pool2d",
    "aten.max_pool1d",
    "aten.max_pool2d",
    "aten.max_pool3d",
    "aten.max_pool1d_with_indices",
    "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices",
    "aten.upsample_nearest1d",
    "aten.upsample_nearest2d",
    "aten.upsample_nearest3d",
    "aten.upsample_linear1d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten.upsample_trilinear3d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
    "aten._upsample_nearest_exact2d",
)
def spatial(call: Call, x: Value, *args: Any, **__: Any) -> list[Axes]:
    """Every channel on its own; positions in space matter, unless the whole plane becomes one value."""
    name = call.operator.split(".")[1]
    rank = next(rank for rank in (3, 2, 1) if f"{rank}d" in name)
    if "adaptive" not in name or any(size != 1 for size in call.shape[-rank:]):
        call.pin(x.axes[-rank:], SPACE)
    call.together(*x.axes[:-rank])
    axes = (*x.axes[:-rank], *(call.new(size, SPACE) for size in call.shape[-rank:]))
    return [axes] * len(call.shapes)


@register_rule("aten.im2col")
def patches(call: Call, x: Value, *_: Any) -> Axes:
    """``(..., channels, height, width)`` to ``(..., channels x places in the kernel, patches)``."""
    call.pin(x.axes[-2:], SPACE)
    call.together(*x.axes[:-2])
    places = call.new(call.shape[-2] // x.shape[-3], KERNEL)
    return (*x.axes[:-3], product(x.axes[-3], places), call.new(call.shape[-1], SPACE))


@register_rule("aten.col2im")
def from_patches(call: Call, x: Value, *_: Any) -> Axes:
    """``(..., channels x places in the kernel, patches)`` to ``(..., channels, height, width)``."""
    channels, places = call.divide(x.axes[-2], call.shape[-3], x.shape[-2] // call.shape[-3])
    call.pin((places, x.axes[-1]), SPACE)
    call.together(*x.axes[:-2], channels)
    return (*x.axes[:-2], channels, *(call.new(size, SPACE) for size in call.shape[-2:]))


@register_rule(
    "aten.grid_sampler",
    "aten.grid_sampler_2d",
    "aten.grid_sampler_3d",
    "aten._grid_sampler_2d_cpu_fallback",
    "aten.cudnn_grid_sampler",
)
def grid_sampler(call: Call, x: Value, grid: Value, *_: Any) -> Axes:
    """Channels at places in space: ``x (batch, channels, *space)``, ``grid (batch, *places, coordinates)``."""
    call.pin((*x.axes[2:], *grid.axes[1:]), SPACE)
    batch = call.tie(x.axes[0], grid.axes[0])
    call.together(batch, x.axes[1])
    return (batch, x.axes[1], *grid.axes[1:-1])


@register_rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(call: Call, x: Value, boxes: Value, *_: Any) -> list[Axes]:
    """Channels in boxes of the images of a batch."""
    call.pin((x.axes[0], *x.axes[2:], *boxes.axes), SPACE)
    call.together(x.axes[1])
    return [
        (call.new(shape[0], SPACE), x.axes[1], *(call.new(size, SPACE) for size in shape[2:])) for shape in call.shapes
    ]


@register_rule("torchvision.deform_conv2d")
def deformable_convolution(
    call: Call, x: Value, weight: Value, offset: Value, mask: Value, bias: Value, *sizes: Any
) -> Axes:
    """A convolution that looks where the offsets say; these belong to groups of channels."""
    *_, groups, offset_groups, _use_mask = sizes
    for value in tensors([offset, mask]):
        call.pin(value.axes[1:], SPACE)
    if offset_groups > 1:
        outer, _ = call.divide(x.axes[1], offset_groups, x.axes[1].size // offset_groups)
        call.pin(outer, SPACE)
    stride = 2  # positions are moved, whatever the kernel
    return convolve(call, x, weight, bias, stride, 0, 1, False, 0, groups)
