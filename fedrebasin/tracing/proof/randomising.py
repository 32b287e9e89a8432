"""Random parameters and inputs for a check: nothing that a fresh model has in common may hide a wrong group."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.memory import room

POOL = 1_000_003  # prime, so that no two rows of a tensor are filled alike
_FEW = 2**14
_SMALL_INTEGERS = (torch.int8, torch.uint8, torch.int16)


def randomised(model: nn.Module, generator: torch.Generator, *, wide: bool = False) -> dict[str, Tensor]:
    """The state dict with random float64 (complex128) entries of a size that keeps signals alive.

    Integer entries are drawn from the range that they have, bools at random; counters stay.

    Args:
        model: whose state dict is meant; it is not changed.
        generator: on the CPU.
        wide: whether 8 and 16 bit integers (quantised weights, which may all be zero) leave their range.
    """
    return randomised_state(model.state_dict(keep_vars=True), generator, wide=wide)


def randomised_state(
    state: Mapping[str, Tensor], generator: torch.Generator, *, wide: bool = False
) -> dict[str, Tensor]:
    """As :func:`randomised`, of a state dict; tensors that are one object get one draw."""
    drawn = _Pool(generator)
    found: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    for key, tensor in state.items():
        if id(tensor) in tied:
            found[key] = tied[id(tensor)].clone()
            continue
        if tensor.is_floating_point():
            found[key] = _entries(key, tensor, drawn)
        elif tensor.is_complex():
            found[key] = torch.complex(*(_entries(key, tensor, drawn) for _ in range(2)))
        else:
            found[key] = _whole_numbers(tensor.detach(), generator, wide)
        tied[id(tensor)] = found[key]
    return found


def varied(value: Any, generator: torch.Generator) -> Any:
    """A tensor of the same shape: reals at random, integers within the range that they came in, bools at random."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    if value.is_floating_point() or value.is_complex():
        dtype = torch.complex128 if value.is_complex() else torch.float64
        return torch.randn(value.shape, generator=generator, dtype=dtype).to(value.device, value.dtype)
    return _whole_numbers(value, generator, wide=False)


def _whole_numbers(tensor: Tensor, generator: torch.Generator, wide: bool) -> Tensor:
    if not tensor.dim() or not tensor.numel() or tensor.is_quantized:
        return tensor.clone()
    if tensor.dtype == torch.bool:
        low, high = 0, 1
    elif wide and tensor.dtype in _SMALL_INTEGERS:
        low, high = (0 if tensor.dtype == torch.uint8 else -4), 4
    else:
        low, high = int(tensor.min()), int(tensor.max())
    if low < -(2**62) or high >= 2**62:
        return tensor.clone()
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.device, tensor.dtype)


class _Pool:
    """Normal numbers; for large tensors, stretches of numbers that are drawn once."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._numbers: Tensor | None = None

    def take(self, number: int) -> Tensor:
        """So many numbers, at most ``POOL``."""
        if number <= _FEW:
            return torch.randn(number, generator=self._generator, dtype=torch.float64)
        if self._numbers is None:
            self._numbers = torch.randn(POOL, generator=self._generator, dtype=torch.float64).repeat(2)
        first = int(torch.randint(POOL, (), generator=self._generator))
        return self._numbers[first : first + number].clone()


def _entries(key: str, tensor: Tensor, pool: _Pool) -> Tensor:
    drawn = pool.take(min(tensor.numel(), POOL))
    return _tiled(_scaled(key, tensor.shape, drawn), tensor.shape).to(tensor.device)


def _scaled(key: str, shape: torch.Size, drawn: Tensor) -> Tensor:
    if "var" in key.rsplit(".", 1)[-1]:
        return drawn.abs_().clamp_(max=2).add_(0.5)
    if len(shape) < 2:
        # Norms' scales near one, of one sign, keep the signal; shifts and biases get the same.
        return drawn.mul_(0.2).add_(0.5)
    return drawn.mul_((2 / max(1, shape[1:].numel())) ** 0.5)


def _tiled(entries: Tensor, shape: torch.Size) -> Tensor:
    """A tensor that repeats the entries until it is full."""
    if entries.numel() == shape.numel():
        return entries.reshape(shape)
    full = room(shape, entries.dtype, entries.device)
    for part in torch.split(full.view(-1), entries.numel()):
        part.copy_(entries[: part.numel()])
    return full
