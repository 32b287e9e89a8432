"""The weighted mean of state dicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.matching import State


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to one; equal ones where none are given.

    Raises:
        MergeError: if they are not one for each model, negative, not finite, or all zero.
    """
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise MergeError(f"{len(weights)} weights for {count} models: give one for each")
    total = math.fsum(weights)
    if not math.isfinite(total) or min(weights) < 0 or total <= 0:
        raise MergeError(f"the weights {tuple(weights)} must be finite, not negative, and not all zero")
    return tuple(weight / total for weight in weights)


def average(states: Iterable[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of models, tensor by tensor: accumulated in float64, returned in the first model's dtypes and devices.

    Args:
        states: state dicts with the same keys and shapes; an iterator is consumed one by one.
        weights: one for each, not negative; equal if None. A one-pass iterator needs them if they are not equal.

    Returns:
        a new state dict; tensors that are not floating point (counters) are the first model's.

    Raises:
        MergeError: if there is no model, or keys or shapes differ, or the weights cannot be used.
    """
    first: State | None = None
    sums: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, 1):
        if first is None:
            first = state
        _demand_same_tensors(first, state)
        if weights is not None and count > len(weights):
            raise MergeError(f"{len(weights)} weights for more models than that: give one for each")
        weight = 1.0 if weights is None else float(weights[count - 1])
        for key, tensor in state.items():
            if first[key].is_floating_point() or first[key].is_complex():
                wide = torch.promote_types(first[key].dtype, torch.float64)
                term = tensor.detach().to(first[key].device, wide)
                sums[key] = term * weight if key not in sums else sums[key].add_(term, alpha=weight)
    if first is None:
        raise MergeError("no model to average: give at least one state dict")
    normalised(weights, count)
    total = count if weights is None else math.fsum(weights)
    return {
        key: (sums[key] / total).to(tensor.dtype) if key in sums else tensor.detach().clone()
        for key, tensor in first.items()
    }


def _demand_same_tensors(first: State, other: State) -> None:
    if first.keys() != other.keys():
        raise MergeError(f"the models differ in the keys {', '.join(sorted(first.keys() ^ other.keys()))}")
    for key, tensor in first.items():
        if tensor.shape != other[key].shape:
            raise MergeError(f"{key}: shapes {tuple(tensor.shape)} and {tuple(other[key].shape)} in models to merge")
