"""What a net of the grammar owns: parameters, buffers of every kind, constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """A tensor, where the net keeps it, and for integers the range that its values come from."""

    tensor: Tensor
    kind: str
    smallest: int = 0
    largest: int = 0

    def register(self, net: nn.Module, name: str) -> None:
        """Make it the attribute ``name`` of the net."""
        if self.kind == "parameter":
            net.register_parameter(name, nn.Parameter(self.tensor))
        elif self.kind == "constant":
            setattr(net, name, self.tensor)
        else:
            net.register_buffer(name, self.tensor, persistent=self.kind == "buffer")
        if self.kind == "buffer" and not self.tensor.is_floating_point():
            net.ranges[name] = (self.smallest, self.largest)  # type: ignore[index, operator, union-attr]


def param(*shape: int) -> Member:
    return Member(torch.randn(shape, dtype=torch.float64), "parameter")


def complex_param(*shape: int) -> Member:
    return Member(torch.randn(shape, dtype=torch.complex128), "parameter")


def buffer(*shape: int) -> Member:
    """A float entry of the state dict that is no parameter."""
    return Member(torch.randn(shape, dtype=torch.float64), "buffer")


def ones(*shape: int) -> Member:
    """A bool entry of the state dict that is all ones when it is traced."""
    return Member(torch.ones(shape, dtype=torch.bool), "buffer", 0, 1)


def mask(*shape: int) -> Member:
    return Member(torch.rand(shape) > 0.4, "buffer", 0, 1)


def int8(*shape: int) -> Member:
    return Member(torch.randint(-9, 10, shape, dtype=torch.int8), "buffer", -9, 9)


def indices(size: int, *shape: int) -> Member:
    """An entry of the state dict whose values number ``size`` places."""
    return Member(torch.randint(size, shape), "buffer", 0, size - 1)


def constant(*shape: int) -> Member:
    """A plain attribute."""
    return Member(torch.randn(shape, dtype=torch.float64), "constant")


def hidden(*shape: int) -> Member:
    """A buffer that the state dict does not have."""
    return Member(torch.randn(shape, dtype=torch.float64), "non-persistent buffer")


def places(size: int, *shape: int) -> Member:
    """Numbers of places that the state dict does not have."""
    return Member(torch.randint(size, shape), "non-persistent buffer")


def put(value: Tensor, where: Tensor, number: float) -> Tensor:
    """``value[where] = number`` on a copy."""
    value = value.clone()
    value[where] = number
    return value


def copied(value: Tensor, dim: int, start: int, other: Tensor) -> Tensor:
    """``other`` written into ``value`` from ``start`` on along a dimension, through a view, on a copy."""
    value = value.clone()
    value.narrow(dim, start, other.shape[dim]).copy_(other)
    return value


def added(value: Tensor, dim: int, start: int, other: Tensor) -> Tensor:
    """``other`` added to ``value`` from ``start`` on along a dimension, through a view, on a copy."""
    value = value.clone()
    part = value.narrow(dim, start, other.shape[dim])
    part += other
    return value


NAMES = {
    each.__name__: each
    for each in (param, complex_param, buffer, ones, mask, int8, indices, constant, hidden, places, put, copied, added)
}
