"""The papers' architectures with a width multiplier: MLP, VGG-11, VGG-16, ResNet-20 and a small ConvNeXt.

Every model takes batches ``(batch, channels, height, width)`` and returns logits ``(batch, classes)``. The norm
is ``"layer"``, LayerNorm over one sample as Git Re-Basin's networks have it (GroupNorm with one group after a
convolution), or ``"batch"``.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedrebasin.errors import RebasinError
from fedrebasin.registry import MODELS, takes

Norm = Literal["layer", "batch"]


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units with ReLU, no norm (Git Re-Basin, section 5: three layers of 512).

    Args:
        in_features: entries of one sample; inputs of any shape are flattened.
        width: units of each hidden layer.
        depth: hidden layers.
        classes: logits.
    """

    def __init__(self, in_features: int, width: int = 512, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        sizes = [in_features, *[width] * depth, classes]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        hidden = inputs.flatten(1)
        for layer in list(self.layers)[:-1]:
            hidden = torch.relu(layer(hidden))
        return cast(Tensor, self.layers[-1](hidden))


class _VGG(nn.Module):
    """3x3 convolutions in stages, halved by max pooling as long as there is something to halve, two dense layers."""

    stages: ClassVar[Sequence[Sequence[int]]]

    def __init__(
        self, sample_shape: Sequence[int] = (3, 32, 32), width: float = 1.0, classes: int = 10, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        channels, height, breadth = sample_shape
        layers: list[nn.Module] = []
        for stage in self.stages:
            for size in stage:
                out = _scaled(size, width)
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), _norm(norm, out), nn.ReLU()]
                channels = out
            if min(height, breadth) > 1:
                layers.append(nn.MaxPool2d(2))
                height, breadth = height // 2, breadth // 2
        self.features = nn.Sequential(*layers)
        hidden = _scaled(512, width)
        self.classifier = nn.Sequential(
            nn.Linear(channels * height * breadth, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return cast(Tensor, self.classifier(self.features(inputs).flatten(1)))


class VGG11(_VGG):
    """VGG-11 (8 convolutions) with two hidden dense layers of 512 units, all sizes times ``width``.

    Args:
        sample_shape: ``(channels, height, width)`` of one sample.
        width: multiplier of every number of channels and units.
        classes: logits.
        norm: after every convolution.
    """

    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG16(_VGG):
    """VGG-16 (13 convolutions) with two hidden dense layers of 512 units, all sizes times ``width``.

    Arguments as for :class:`VGG11`. Git Re-Basin, section 5 (CIFAR-10).
    """

    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a projection where the stream changes its size."""

    def __init__(self, channels: int, out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), _norm(norm, out))

    def forward(self, inputs: Tensor) -> Tensor:
        """The stream after the block."""
        hidden = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet20(nn.Module):
    """ResNet-20 for small images: 16, 32, 64 channels times ``width``, three blocks each (Git Re-Basin, section 5).

    The permutation groups are 12: the streams of the three stages and the inner channels of the nine blocks.

    Args:
        channels: of the input.
        width: multiplier of every number of channels.
        classes: logits.
        norm: after every convolution.
    """

    def __init__(self, channels: int = 3, width: float = 1.0, classes: int = 10, norm: Norm = "layer") -> None:
        super().__init__()
        stream = _scaled(16, width)
        self.conv = nn.Conv2d(channels, stream, 3, padding=1, bias=False)
        self.norm = _norm(norm, stream)
        blocks: list[nn.Module] = []
        for stage, size in enumerate((16, 32, 64)):
            for position in range(3):
                out = _scaled(size, width)
                blocks.append(_Block(stream, out, 2 if stage and not position else 1, norm))
                stream = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(stream, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        hidden = self.blocks(torch.relu(self.norm(self.conv(inputs))))
        return cast(Tensor, self.head(self.pool(hidden).flatten(1)))


class _ConvNeXtBlock(nn.Module):
    """A depth-wise 7x7 convolution, LayerNorm and two 1x1 convolutions with GELU between, beside the stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = _norm("layer", channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.project = nn.Conv2d(4 * channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-1))

    def forward(self, inputs: Tensor) -> Tensor:
        """The stream after the block."""
        hidden = gelu(self.expand(self.norm(self.depthwise(inputs))))
        return cast(Tensor, inputs + self.scale * self.project(hidden))


class ConvNeXt(nn.Module):
    """ConvNeXt (Liu et al. 2022) for small images: two stages of two blocks, 96 and 192 channels times ``width``.

    A depth-wise convolution has one filter a channel and no order of its own to permute, so that only the two streams
    and the inner channels of the four blocks are groups: few for its size (Git Re-Basin, A.1).

    Args:
        channels: of the input.
        width: multiplier of every number of channels.
        classes: logits.
    """

    def __init__(self, channels: int = 3, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second = _scaled(96, width), _scaled(192, width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 2, stride=2),
            _norm("layer", first),
            *(_ConvNeXtBlock(first) for _ in range(2)),
            _norm("layer", first),
            nn.Conv2d(first, second, 2, stride=2),
            *(_ConvNeXtBlock(second) for _ in range(2)),
            nn.AdaptiveAvgPool2d(1),
            _norm("layer", second),
        )
        self.head = nn.Linear(second, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return cast(Tensor, self.head(self.features(inputs).flatten(1)))


def mlp(sample_shape: Sequence[int], classes: int, width: float = 512) -> nn.Module:
    """An :class:`MLP`; ``width`` is its number of units."""
    return MLP(torch.Size(sample_shape).numel(), width=round(width), classes=classes)


def vgg11(sample_shape: Sequence[int], classes: int, width: float = 1, norm: Norm = "layer") -> nn.Module:
    """A :class:`VGG11`."""
    return VGG11(sample_shape, width, classes, norm)


def vgg16(sample_shape: Sequence[int], classes: int, width: float = 1, norm: Norm = "layer") -> nn.Module:
    """A :class:`VGG16`."""
    return VGG16(sample_shape, width, classes, norm)


def resnet20(sample_shape: Sequence[int], classes: int, width: float = 1, norm: Norm = "layer") -> nn.Module:
    """A :class:`ResNet20`."""
    return ResNet20(sample_shape[0], width, classes, norm)


def convnext(sample_shape: Sequence[int], classes: int, width: float = 1) -> nn.Module:
    """A :class:`ConvNeXt`."""
    return ConvNeXt(sample_shape[0], width, classes)


vgg11_bn, vgg16_bn, resnet20_bn = (partial(build, norm="batch") for build in (vgg11, vgg16, resnet20))


def make_model(
    name: str, sample_shape: Sequence[int], classes: int, width: float | None = None, seed: int | None = None
) -> nn.Module:
    """An architecture of the registry by its name.

    Args:
        name: a name in ``MODELS``; ``-bn`` stands for BatchNorm instead of LayerNorm.
        sample_shape: ``(channels, height, width)`` of one sample.
        classes: logits.
        width: units of each hidden layer for the MLP, else the multiplier; None for the papers' width.
        seed: the initialisation depends on it alone and leaves the global random numbers as they are; None draws
            from the global ones.

    Raises:
        RebasinError: for a name that is not in the registry, with the closest one, or a width that is not positive.
    """
    build = MODELS.pick(name)
    if width is not None and (width <= 0 or (name == "mlp" and round(width) < 1)):
        raise RebasinError(f"width {width} of {name}: it must be positive")
    if width is not None and not takes(build, "width"):
        raise RebasinError(f"width {width} of {name}: this model has none to choose")
    sized = build if width is None else partial(build, width=width)
    if seed is None:
        return sized(sample_shape, classes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return sized(sample_shape, classes)


def _scaled(size: int, width: float) -> int:
    return max(1, round(size * width))


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm not in ("layer", "batch"):
        raise RebasinError(f"norm {norm!r}: choose 'layer' or 'batch'")
    return nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)
