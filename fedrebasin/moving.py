"""Moving units: what a permutation does to one tensor, gathered first and carried out in as few copies as possible."""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from torch import Tensor

from fedrebasin.axis import Axis, move_units
from fedrebasin.memory import room


class Moves:
    """The moves of one tensor of a state dict.

    A move that concerns one dimension only, however it is cut and nested there, is done to the positions along that
    dimension: moves of several groups become one index vector, and the tensor is read once for each dimension. Moves
    that tie dimensions to each other (the blocks of grouped convolutions) are done to the tensor itself.

    Args:
        state: the state dict that is written to.
        key: of the tensor.
        own: whether the tensor may be written to; otherwise it is copied first.
    """

    def __init__(self, state: MutableMapping[str, Tensor], key: str, own: bool) -> None:
        self._state, self._key, self._own = state, key, own
        self._positions: dict[int, Tensor] = {}

    def add(self, axis: Axis, index: Tensor) -> None:
        """Move the units of ``axis``; ``index`` is the group's, on the CPU. Moves are added outermost group first."""
        tensor = self._state[self._key]
        if axis.lies_on_one_dimension:
            positions = self._positions.setdefault(axis.dim, torch.arange(tensor.shape[axis.dim]))
            view = axis.alone().view(positions)
            view.copy_(move_units(view, index))
            return
        self.finish()
        tensor = self._state[self._key]
        if not (self._own and tensor.is_contiguous()):
            tensor = self._state[self._key] = tensor.clone(memory_format=torch.contiguous_format)
            self._own = True
        view = axis.view(tensor)
        view.copy_(move_units(view, index.to(tensor.device)))

    def finish(self) -> None:
        """Carry out what has been gathered."""
        for dim, positions in self._positions.items():
            self._state[self._key] = gathered(self._state[self._key], dim, positions)
            self._own = True
        self._positions.clear()


def gathered(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """``tensor.index_select(dim, positions)``, by runs of neighbours where ``positions`` keeps them together.

    Args:
        tensor: any tensor.
        dim: the dimension to read from.
        positions: a permutation of its indices, on the CPU.
    """
    size = positions.numel()
    breaks = (positions.diff() != 1).nonzero().flatten() + 1
    run = math.gcd(size, *breaks.tolist(), *positions[:1].tolist(), *positions[breaks].tolist())
    blocks = (positions[::run] // run).to(tensor.device)
    shape = tensor.shape
    apart = tensor.reshape(*shape[:dim], size // run, run, *shape[dim + 1 :]) if run > 1 else tensor
    found = room(apart.shape, tensor.dtype, tensor.device)
    return torch.index_select(apart, dim, blocks, out=found).reshape(shape)
