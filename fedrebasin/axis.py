"""Axis: the part of one tensor of a state dict that a group's units index.

Nearly every axis is plain: a group of n units and a dimension of size n. The others are strided views: a channel axis
flattened with H x W, attention heads times head size, a packed q/k/v projection, the four gates of an LSTM, a piece of
a concatenation, the input channels of a grouped convolution. A :class:`Layout` describes all of them as an affine
index: each factor advances the index along one dimension by its stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.errors import SpecError


class Factor(NamedTuple):
    """One index of a layout: its values 0 .. size - 1 advance the position along ``dim`` by ``stride`` each."""

    dim: int
    size: int
    stride: int = 1


@dataclass(frozen=True)
class Layout:
    """How a group's units lie in a tensor when they are not simply one whole dimension.

    Args:
        levels: the indices that the group's permutation moves: its ancestors' blocks, outermost first, its own units
            last. Their sizes are the group's ``shape``. They may lie on different dimensions: in a grouped
            convolution the input channels (dim 1) nest in the blocks of the output channels (dim 0).
        rest: every further index along the dimensions that the layout names, which the group leaves in place.
            Dimensions that the layout does not name are left in place as a whole.
        start: ``(dim, offset)`` for each dimension on which the part does not begin at 0.

    A 768-long axis of 12 heads x 64 seen by the heads: ``levels=(Factor(0, 12, 64),), rest=(Factor(0, 64),)``; by the
    units in each head: ``levels=(Factor(0, 12, 64), Factor(0, 64))``.
    """

    levels: tuple[Factor, ...]
    rest: tuple[Factor, ...] = ()
    start: tuple[tuple[int, int], ...] = ()

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions that the layout names."""
        return frozenset(factor.dim for factor in (*self.levels, *self.rest))

    def extent(self, dim: int) -> int:
        """One more than the largest index that the layout reaches along ``dim``."""
        reach = sum((factor.size - 1) * factor.stride for factor in (*self.levels, *self.rest) if factor.dim == dim)
        return dict(self.start).get(dim, 0) + reach + 1


@dataclass(frozen=True)
class Axis:
    """A permuted axis of the tensor ``key``: dimension ``dim``, whole (``layout=None``) or as the layout says.

    ``dim`` is where the group's own units lie; with a layout it equals ``layout.levels[-1].dim``.
    """

    key: str
    dim: int
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout.levels[-1].dim != self.dim:
            raise SpecError(f"axis {self.key}[{self.dim}]: the layout's units lie on another dimension")

    def view(self, tensor: Tensor) -> Tensor:
        """A view of ``tensor`` whose first dimensions are the group's shape; writing to it writes to the tensor.

        Args:
            tensor: the tensor named ``key``, contiguous when the axis has a layout.

        Returns:
            shape ``(*group.shape, *rest, *the dimensions that the axis does not name)``.
        """
        if self.layout is None:
            return tensor.movedim(self.dim, 0)
        if not tensor.is_contiguous():
            raise SpecError(f"axis {self.key}[{self.dim}]: a strided part needs a contiguous tensor")
        sizes, strides = [], []
        for factor in (*self.layout.levels, *self.layout.rest):
            sizes.append(factor.size)
            strides.append(factor.stride * tensor.stride(factor.dim))
        for dim in range(tensor.dim()):
            if dim not in self.layout.dims:
                sizes.append(tensor.shape[dim])
                strides.append(tensor.stride(dim))
        offset = tensor.storage_offset() + sum(first * tensor.stride(dim) for dim, first in self.layout.start)
        return tensor.as_strided(sizes, strides, offset)

    @property
    def lies_on_one_dimension(self) -> bool:
        """Whether moving the units, and the blocks that contain them, reorders one dimension of the tensor only."""
        return self.layout is None or self.layout.dims == {self.dim}

    def alone(self) -> Axis:
        """The axis as it lies in a tensor that has its dimension only."""
        if self.layout is None:
            return Axis(self.key, 0)
        levels, rest = (
            tuple(factor._replace(dim=0) for factor in factors) for factors in (self.layout.levels, self.layout.rest)
        )
        return Axis(
            self.key, 0, Layout(levels, rest, tuple((0, first) for dim, first in self.layout.start if dim == self.dim))
        )

    def move(self, tensor: Tensor, index: Tensor) -> None:
        """Permute the group's units in ``tensor`` itself.

        Args:
            tensor: the tensor named ``key``, contiguous when the axis has a layout.
            index: of the group, shape ``group.shape``, on any device.
        """
        view = self.view(as_bits(tensor))
        view.copy_(move_units(view, index.to(tensor.device)))

    def units(self, tensor: Tensor, depth: int = 1) -> Tensor:
        """The entries of ``tensor`` that belong to each unit, as a matrix: shape ``(*group.shape, entries)``."""
        view = self.view(tensor if self.layout is None else tensor.contiguous())
        return view.reshape(*view.shape[:depth], -1)

    def misfits(self, shape: tuple[int, ...], group_shape: tuple[int | None, ...]) -> Iterator[str]:
        """What keeps the axis from lying in a tensor of this shape, one sentence each."""
        where = f"{self.key}[{self.dim}]"
        if self.dim >= len(shape):
            yield f"{where}: the tensor has shape {shape}, so there is no dimension {self.dim}"
            return
        if self.layout is None:
            if len(group_shape) != 1:
                yield f"{where}: a group inside another one needs a layout"
            elif group_shape[0] is not None and shape[self.dim] != group_shape[0]:
                yield f"{where}: shape {shape} has {shape[self.dim]} units where the group has {group_shape[0]}"
            return
        sizes = tuple(level.size for level in self.layout.levels)
        if sizes != group_shape and None not in group_shape:
            yield f"{where}: the layout has levels {sizes} where the group has shape {group_shape}"
        for dim in sorted(self.layout.dims):
            if dim >= len(shape) or self.layout.extent(dim) > shape[dim]:
                yield f"{where}: the layout reaches outside of shape {shape} along dimension {dim}"

    def __str__(self) -> str:
        if self.layout is None:
            return f"{self.key}[{self.dim}]"
        factors = sorted(
            [(factor, True) for factor in self.layout.levels] + [(factor, False) for factor in self.layout.rest],
            key=lambda pair: (pair[0].dim, -pair[0].stride),
        )
        parts = "x".join(f"({factor.size})" if moved else str(factor.size) for factor, moved in factors)
        offset = dict(self.layout.start).get(self.dim, 0)
        return f"{self.key}[{self.dim}: {parts}{f' from {offset}' if offset else ''}]"


def as_bits(tensor: Tensor) -> Tensor:
    """A tensor that torch can index, over the same memory: floats of 8 bits as integers, others as they are."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def number_moved(axes: Sequence[Axis], shape: tuple[int, ...]) -> int:
    """How many entries of a tensor of this shape lie on at least one of its axes."""
    layouts = [axis.layout for axis in axes]
    named = {dim for layout in layouts if layout is not None for dim in layout.dims}
    if None in layouts:
        return math.prod(shape)
    if not layouts:
        return 0
    mask = torch.zeros([size if dim in named else 1 for dim, size in enumerate(shape)], dtype=torch.bool)
    for axis in axes:
        axis.view(mask).fill_(True)
    return int(mask.sum()) * math.prod(size for dim, size in enumerate(shape) if dim not in named)


def move_units(view: Tensor, index: Tensor) -> Tensor:
    """Permute the units of one group inside their blocks: ``out[b, i] = view[b, index[b, i]]``.

    Args:
        view: shape ``(*group.shape, ...)``, as :meth:`Axis.view` returns it.
        index: shape ``group.shape``, on the device of ``view``.
    """
    if index.dim() == 1:
        return view.index_select(0, index)
    trailing = (1,) * (view.dim() - index.dim())
    return torch.take_along_dim(view, index.reshape(*index.shape, *trailing), dim=index.dim() - 1)
