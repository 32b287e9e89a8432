"""The mean of all models at hand, or of an iterator's."""

import math
from collections.abc import Iterable, Sequence
from itertools import repeat

from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.state import Mean, State


def normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to one; equal ones where none are given.

    Raises:
        MergeError: if there are no models, or the weights are not one for each, negative, not finite, or all zero.
    """
    if count < 1:
        raise MergeError("no model to merge: give at least one state dict")
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        raise MergeError(f"{len(weights)} weights for {count} models: give one for each")
    if not all(map(math.isfinite, weights)) or min(weights) < 0 or max(weights) <= 0:
        raise MergeError(f"the weights {tuple(weights)} must be finite, not negative, and not all zero")
    _, exponent = math.frexp(max(weights))
    shares = [math.ldexp(weight, -exponent) for weight in weights]  # the same proportions, whose sum is a number
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def average(states: Iterable[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of models, tensor by tensor: see :class:`fedrebasin.state.Mean`.

    Args:
        states: state dicts with the same keys and shapes; an iterator is consumed one by one.
        weights: one for each, not negative; equal if None. A one-pass iterator needs them if they are not equal.

    Returns:
        a new state dict, in the first model's dtypes and devices; counters (single integers and bools) are its own.

    Raises:
        MergeError: if there is no model, or keys or shapes differ, or integer tensors, which are not averaged, or the
            weights cannot be used.
    """
    if weights is not None:
        normalised(weights, len(weights))
    shares = repeat(1.0) if weights is None else iter(weights)
    mean, count = Mean(), 0
    for count, state in enumerate(states, 1):
        if (share := next(shares, None)) is None:
            raise MergeError(f"{count - 1} weights for more models than that: give one for each")
        mean.add(state, share)
    normalised(weights, count)
    return mean.finish()
