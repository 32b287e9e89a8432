"""Moving units: what a permutation does to one tensor, gathered first and carried out in as few copies as possible."""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from torch import Tensor

from fedrebasin.memory import room
from fedrebasin.spec.axis import Axis, as_bits


class Moves:
    """The moves of one tensor of a state dict.

    A move that concerns one dimension only, however it is cut and nested there, is done to the positions along that
    dimension: moves of several groups become one index vector, and the tensor is read once for each dimension. Moves
    that tie dimensions to each other (the blocks of grouped convolutions) are done to the tensor itself.

    Args:
        state: the state dict that is written to.
        key: of the tensor.
        own: whether the tensor may be written to; otherwise it is copied first.
        scratch: room that the moves of all tensors share.
    """

    def __init__(self, state: MutableMapping[str, Tensor], key: str, own: bool, scratch: Scratch) -> None:
        self._state, self._key, self._own, self._scratch = state, key, own, scratch
        self._positions: dict[int, Tensor] = {}

    def add(self, axis: Axis, index: Tensor) -> None:
        """Move the units of ``axis``; ``index`` is the group's, on the CPU. Moves are added outermost group first."""
        tensor = self._state[self._key]
        if axis.lies_on_one_dimension:
            positions = self._positions.setdefault(axis.dim, torch.arange(tensor.shape[axis.dim]))
            axis.alone().move(positions, index)
            return
        self.finish()
        tensor = self._state[self._key]
        if not (self._own and tensor.is_contiguous()):
            tensor = self._state[self._key] = tensor.clone(memory_format=torch.contiguous_format)
            self._own = True
        axis.move(tensor, index)

    def finish(self) -> None:
        """Carry out what has been gathered."""
        tensor = self._state[self._key]
        spare = self._scratch.like(tensor) if self._own and self._positions and tensor.is_contiguous() else None
        for dim, positions in self._positions.items():
            moved = gathered(tensor, dim, positions, out=spare)
            tensor, spare = moved, None if spare is None else tensor
        if spare is not None and tensor is not self._state[self._key]:
            tensor = self._state[self._key].copy_(tensor)
        self._state[self._key] = tensor
        self._own = self._own or bool(self._positions)
        self._positions.clear()


class Scratch:
    """Room for one tensor at a time, kept from one to the next: fresh memory costs more than what is written to it."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of this shape, dtype and device with arbitrary entries, valid until the next call."""
        if self._bytes.numel() < tensor.nbytes or self._bytes.device != tensor.device:
            self._bytes = room((tensor.nbytes,), torch.uint8, tensor.device)
        return self._bytes[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def gathered(tensor: Tensor, dim: int, positions: Tensor, out: Tensor | None = None) -> Tensor:
    """``tensor.index_select(dim, positions)``, by runs of neighbours where ``positions`` keeps them together.

    Args:
        tensor: any tensor.
        dim: the dimension to read from.
        positions: a permutation of its indices, on the CPU.
        out: a contiguous tensor of the same shape to write to and return; a new one if None.
    """
    tensor = tensor.detach()  # a parameter's: what is written to in place has no gradient
    size = positions.numel()
    breaks = (positions.diff() != 1).nonzero().flatten() + 1
    run = math.gcd(size, *breaks.tolist(), *positions[:1].tolist(), *positions[breaks].tolist())
    blocks = (positions[::run] // run).to(tensor.device) if run else positions.to(tensor.device)
    out = room(tensor.shape, tensor.dtype, tensor.device) if out is None else out
    _gather(as_bits(tensor), dim, blocks, run, as_bits(out))
    return out


def _gather(tensor: Tensor, dim: int, blocks: Tensor, run: int, out: Tensor) -> None:
    """Read runs of neighbours along a dimension in this order."""
    size = tensor.shape[dim]
    if run <= 1 and not tensor.shape[dim + 1 :].numel() > 1:
        # Along the last dimension gather takes half of index_select's time in float64, and the same in float32.
        rows = tensor.reshape(-1, size)
        torch.gather(rows, 1, blocks.expand_as(rows), out=out.view(-1, size))
        return
    apart = (*tensor.shape[:dim], size // max(run, 1), max(run, 1), *tensor.shape[dim + 1 :])
    torch.index_select(tensor.reshape(apart), dim, blocks, out=out.view(apart))
