"""What the tensors of a state dict are: which are averaged, which only counted, and which cannot be worked with.

What becomes of those that have no mean is said by :class:`fedrebasin.state.Mean`: in merging they move with their units
and have to be equal in all models; Flower's strategies keep to Flower's ways with what no group moves.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fedrebasin.errors import MergeError, RebasinError

_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")

#: A model as its tensors by key: a ``state_dict()``.
State = Mapping[str, Tensor]


def has_mean(tensor: Tensor) -> bool:
    """Whether a tensor is averaged: floating-point and complex ones are."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_counter(tensor: Tensor) -> bool:
    """Whether a tensor is a single integer or bool, which no permutation moves."""
    return not has_mean(tensor) and tensor.numel() == 1


def is_statistic(key: str) -> bool:
    """Whether a tensor is called like a running mean or variance, in PyTorch, Keras or Flax: it is no parameter."""
    return key.endswith(_STATISTICS) or "batch_stats" in re.split(r"\W", key)


def is_variance(key: str) -> bool:
    """Whether it is called like a running variance, which cannot be negative."""
    return is_statistic(key) and "var" in re.split(r"\W", key)[-1]


def wide(tensor: Tensor) -> Tensor:
    """A tensor in the precision that sums are taken in: float64, or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def real(tensor: Tensor) -> Tensor:
    """A tensor as real numbers in float64; a complex number is a vector of two."""
    return torch.view_as_real(wide(tensor).resolve_conj()) if tensor.is_complex() else wide(tensor)


def is_narrow(tensor: Tensor) -> bool:
    """Whether it is of floats of fewer than 32 bits."""
    return tensor.is_floating_point() and tensor.itemsize < 4


def runnable(state: State) -> dict[str, Tensor]:
    """A state dict that a model is run with: narrow floats in float32, all else as it is."""
    return {key: tensor.float() if is_narrow(tensor) else tensor for key, tensor in state.items()}


def layer_of(key: str) -> str:
    """The module that a tensor belongs to: ``"0"`` of ``"0.weight"``; a tensor of no module is a layer itself."""
    return key.rpartition(".")[0] or key


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def computable(tensor: Tensor) -> Tensor:
    """A tensor that can be added and multiplied: floats of 8 bits cannot, and become float32."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def flaws(state: State) -> list[str]:
    """What keeps the entries of a state dict from being worked with, a sentence each: only dense tensors can be."""
    found = []
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            found.append(f"{key} is of type {type(tensor).__name__} where a tensor is needed: leave it out")
        elif is_lazy(tensor):
            found.append(f"{key} has no shape yet: run the lazy module once before its state dict is taken")
        elif tensor.layout != torch.strided or tensor.is_quantized:
            found.append(f"{key} is sparse or quantised: make it dense")
    return found


def demand_numbers(state: State, kind: type[RebasinError] = MergeError) -> None:
    """Refuse a state dict that holds anything but dense tensors with numbers in them.

    Args:
        state: the state dict.
        kind: of the error.

    Raises:
        RebasinError: naming the first entry that is something else.
    """
    if found := flaws(state):
        raise kind(found[0])
    if empty := next((key for key, tensor in state.items() if tensor.is_meta), None):
        raise kind(f"{empty} has no numbers: it is on the meta device")


def demand_same_form(a: State, b: State) -> None:
    """Refuse two state dicts of other keys, shapes or kinds of numbers.

    Raises:
        MergeError: naming the keys, or the first tensor.
    """
    if a.keys() != b.keys():
        raise MergeError(f"the models differ in the keys {', '.join(sorted(a.keys() ^ b.keys()))}")
    for key, tensor in a.items():
        if tensor.shape != b[key].shape:
            raise MergeError(f"{key}: shapes {tuple(tensor.shape)} and {tuple(b[key].shape)} differ")
    demand_same_kinds(a, b)


def demand_same_kinds(a: State, b: State, kind: type[RebasinError] = MergeError) -> None:
    """Refuse two state dicts where a tensor is real in one and complex or of integers in the other.

    Args:
        a: a state dict.
        b: another one; keys that only one of them has do not count, nor do single numbers.
        kind: of the error.

    Raises:
        RebasinError: naming the first such tensor.
    """
    for key in (key for key in a if key in b and a[key].dtype != b[key].dtype and a[key].numel() > 1):
        if (has_mean(a[key]), a[key].is_complex()) != (has_mean(b[key]), b[key].is_complex()):
            one, other = dtype_name(a[key].dtype), dtype_name(b[key].dtype)
            raise kind(f"{key} is {one} in one model and {other} in another: bring them to one dtype")
