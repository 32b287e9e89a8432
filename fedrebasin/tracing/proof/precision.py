"""Running a model in double precision, whatever it asks for inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DOUBLE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_NEVER_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-3}
_NEVER_ROUNDING_IN_HALF = 3e-2


def never_rounding(precision: torch.dtype) -> float:
    """A change of an output that rounding errors never make, relative to the output's largest entry."""
    return _NEVER_ROUNDING.get(precision, _NEVER_ROUNDING_IN_HALF)


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of real or complex numbers in this precision; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_complex():
            return value.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
        return value.to(dtype) if value.is_floating_point() else value
    return value


class _Doubled(TorchFunctionMode):
    """Models that ask for single precision inside get double: rounding must not hide behind a cast."""

    _casts = (Tensor.float, Tensor.half, Tensor.bfloat16)
    _convolutions = (torch.conv1d, torch.conv2d, torch.conv3d)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._casts:
            return args[0].double()
        if func in self._convolutions:
            # On a CPU, depthwise convolutions in float64 take up to 13 times longer with the channels last.
            args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        args = tuple(_double(arg) for arg in args)
        return func(*args, **{name: _double(arg) for name, arg in (kwargs or {}).items()})


def _double(argument: Any) -> Any:
    return _DOUBLE.get(argument, argument) if isinstance(argument, torch.dtype) else argument


@contextmanager
def running_in(dtype: torch.dtype) -> Iterator[None]:
    """Float64 is what the model gets wherever it asks for less; any other precision is left to the model."""
    if dtype != torch.float64:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubled():
            yield
    finally:
        torch.set_default_dtype(before)
