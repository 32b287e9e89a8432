"""The weighted mean, as Flower takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def flower_mean(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean as Flower takes it: in each array's own precision, in order, integers in float64.

    Identity: bit for bit ``flwr``'s own aggregate.
    """
    total = sum(weights)
    mean: dict[str, Tensor] = {}
    for state, weight in zip(states, weights, strict=True):
        factor = weight / total
        for key, tensor in state.items():
            scaled = (tensor if tensor.is_floating_point() else tensor.double()) * factor
            if key in mean:
                mean[key] += scaled
            else:
                mean[key] = scaled
    return mean
