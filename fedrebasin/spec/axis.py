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

#: Entries of a tensor that are marked one by one to count those that some axis moves.
_MOST_COUNTED = 2**30


class Factor(NamedTuple):
    """One index of a layout: its values 0 .. size - 1 advance the position along ``dim`` by ``stride`` each.

    Where the units do not lie evenly (one of them was picked from the middle), ``stride`` is the tuple of their places,
    the first of them 0.
    """

    dim: int
    size: int
    stride: int | tuple[int, ...] = 1

    @property
    def places(self) -> Sequence[int]:
        """The distance of each unit from the first."""
        return self.stride if isinstance(self.stride, tuple) else range(0, self.size * self.stride, self.stride)

    @property
    def reach(self) -> int:
        """The distance of the last unit from the first."""
        return max(self.stride) if isinstance(self.stride, tuple) else (self.size - 1) * self.stride

    @property
    def order(self) -> tuple[int, float]:
        """Outer factors before inner ones, by dimension; one whose stride is not known yet (0) lies outside."""
        return self.dim, -(self.stride or math.inf) if isinstance(self.stride, int) else -self.stride[1]


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
        reach = sum(factor.reach for factor in (*self.levels, *self.rest) if factor.dim == dim)
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
        """``tensor`` with the group's shape as its first dimensions; a view, but for units that lie unevenly.

        Args:
            tensor: the tensor named ``key``, contiguous when the axis has a layout.

        Returns:
            shape ``(*group.shape, *rest, *the dimensions that the axis does not name)``.
        """
        if self.layout is None:
            return tensor.movedim(self.dim, 0)
        if not tensor.is_contiguous():
            raise SpecError(f"axis {self.key}[{self.dim}]: a strided part needs a contiguous tensor")
        factors = self._factors(tensor)
        if not all(isinstance(factor.stride, int) for factor in factors):
            return tensor.flatten()[self._entries(tensor)]
        sizes = [factor.size for factor in factors]
        strides = [factor.stride * tensor.stride(factor.dim) for factor in factors if isinstance(factor.stride, int)]
        offset = tensor.storage_offset() + sum(first * tensor.stride(dim) for dim, first in self.layout.start)
        return tensor.as_strided(sizes, strides, offset)

    def write(self, tensor: Tensor, view: Tensor) -> None:
        """Write entries that are arranged as :meth:`view` arranges them."""
        if self.layout is not None and not all(isinstance(factor.stride, int) for factor in self._factors(tensor)):
            tensor.view(-1)[self._entries(tensor)] = view
        else:
            self.view(tensor).copy_(view)

    def _factors(self, tensor: Tensor) -> list[Factor]:
        """The indices of :meth:`view`: the layout's, then the dimensions that it does not name."""
        assert self.layout is not None
        others = [Factor(dim, size) for dim, size in enumerate(tensor.shape) if dim not in self.layout.dims]
        return [*self.layout.levels, *self.layout.rest, *others]

    def _entries(self, tensor: Tensor) -> Tensor:
        """Where in the flattened tensor the entries of :meth:`view` lie."""
        assert self.layout is not None
        found = torch.tensor(sum(first * tensor.stride(dim) for dim, first in self.layout.start))
        for factor in self._factors(tensor):
            found = found[..., None] + torch.tensor(factor.places) * tensor.stride(factor.dim)
        return found.to(tensor.device)

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
        bits = as_bits(tensor)
        self.write(bits, move_units(self.view(bits), index.to(tensor.device)))

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
            key=lambda pair: pair[0].order,
        )
        sizes = [
            f"{factor.size} of {max(factor.places) + 1}" if isinstance(factor.stride, tuple) else str(factor.size)
            for factor, _ in factors
        ]
        parts = "x".join(f"({size})" if moved else size for size, (_, moved) in zip(sizes, factors, strict=True))
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
    sizes = [size if dim in named else 1 for dim, size in enumerate(shape)]
    if math.prod(sizes) > _MOST_COUNTED:
        raise SpecError(f"{axes[0].key}: what moves in a tensor of shape {shape} cannot be counted")
    mask = torch.zeros(sizes, dtype=torch.bool)
    for axis in axes:
        axis.write(mask, torch.tensor(True))
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
