"""The weighted mean of state dicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedrebasin.errors import MergeError, RebasinError, one_line
from fedrebasin.matching import State
from fedrebasin.state import demand_numbers, demand_same_kinds, has_mean, is_counter, wide


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to one; equal ones where none are given.

    Raises:
        MergeError: if there are no models, or the weights are not one for each, negative, not finite, or all zero.
    """
    if count < 1:
        raise MergeError("no model to merge: give at least one state dict")
    shares = (1.0,) * count if weights is None else in_range(weights)
    if len(shares) != count:
        raise MergeError(f"{len(shares)} weights for {count} models: give one for each")
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def in_range(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights in the same proportions, by a power of two, so that sums of 1024 weighted numbers cannot overflow.

    Raises:
        MergeError: if they are negative, not finite, or all zero.
    """
    if not weights or not all(map(math.isfinite, weights)) or min(weights) < 0 or max(weights) <= 0:
        raise MergeError(f"the weights {tuple(weights)} must be finite, not negative, and not all zero")
    _, exponent = math.frexp(max(weights))
    return tuple(math.ldexp(weight, -exponent - 10) for weight in weights)


def average(states: Iterable[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of models, tensor by tensor: accumulated in float64, returned in the first model's dtypes and devices.

    Args:
        states: state dicts with the same keys and shapes; an iterator is consumed one by one.
        weights: one for each, not negative; equal if None. A one-pass iterator needs them if they are not equal.

    Returns:
        a new state dict; counters (single integers and bools) are the first model's.

    Raises:
        MergeError: if there is no model, or keys or shapes differ, or integer tensors, which are not averaged, or the
            weights cannot be used.
    """
    first: State | None = None
    sums: dict[str, Tensor] = {}
    shares = None if weights is None else in_range(weights)
    count = 0
    for count, state in enumerate(states, 1):
        if first is None:
            first = state
        _demand_same_tensors(first, state)
        if shares is not None and count > len(shares):
            raise MergeError(f"{len(shares)} weights for more models than that: give one for each")
        share = in_range([1.0])[0] if shares is None else shares[count - 1]
        for key, tensor in state.items():
            with naming(key):
                if not has_mean(first[key]):
                    demand_equal(key, first[key], tensor, count)
                    continue
                term = wide(tensor.detach().to(first[key].device))
                sums[key] = term * share if key not in sums else sums[key].add_(term, alpha=share)
    if first is None:
        raise MergeError("no model to average: give at least one state dict")
    normalised(weights, count)
    total = math.fsum(in_range([1.0]) * count if shares is None else shares)
    mean = {}
    for key, tensor in first.items():
        with naming(key):
            mean[key] = (sums[key] / total).to(tensor.dtype) if key in sums else tensor.detach().clone()
    return mean


def demand_equal(key: str, first: Tensor, other: Tensor, number: int) -> None:
    """Refuse integer and bool tensors that differ from the first model's; counters may.

    Args:
        key: of the tensor.
        first: in the first model, or the base.
        other: in another one, its units in the same order.
        number: of that model, from 1, for the message.

    Raises:
        MergeError: with the key and the number of entries that differ.
    """
    if first is other or is_counter(first):
        return
    if different := number_different(first, other):
        kind = str(first.dtype).removeprefix("torch.")
        raise MergeError(
            f"{key}: {different} of {first.numel()} entries of model {number} are not the first model's, and {kind} "
            "tensors are not averaged: make them equal in all models, or merge only those that have the same"
        )


def number_different(a: Tensor, b: Tensor) -> int:
    """Entries in which two tensors of one shape differ, of whatever dtype."""
    common = torch.promote_types(a.dtype, b.dtype)
    bits = [t.detach().to(a.device, common).contiguous().reshape(-1, 1).view(torch.uint8) for t in (a, b)]
    return int((bits[0] != bits[1]).any(1).sum())


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Whatever torch cannot do with a tensor (4-bit floats, quantised ones) becomes an error that names it.

    Raises:
        MergeError: with the key and torch's reason.
    """
    try:
        yield
    except RebasinError:
        raise
    except Exception as error:
        raise MergeError(f"{key} cannot be averaged: {one_line(error)}") from error


def _demand_same_tensors(first: State, other: State) -> None:
    if first.keys() != other.keys():
        raise MergeError(f"the models differ in the keys {', '.join(sorted(first.keys() ^ other.keys()))}")
    for state in (first, other):
        demand_numbers(state)
    demand_same_kinds(first, other)
    for key, tensor in first.items():
        if tensor.shape != other[key].shape:
            raise MergeError(f"{key}: shapes {tuple(tensor.shape)} and {tuple(other[key].shape)} in models to merge")
