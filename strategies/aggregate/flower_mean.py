"""The weighted mean, as Flower takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


class FlowerMean:
    """The weighted mean as Flower takes it: in each array's own precision, in order, integers in float64.

    Identity: bit for bit ``flwr``'s own aggregate.

    Args:
        weights: of all models that will be added, in their order.
    """

    def __init__(self, weights: Iterable[float]) -> None:
        self._weights = list(weights)
        self._total = sum(self._weights)
        self._factors = iter(self._weights)
        self._scaled: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add the next model."""
        factor = next(self._factors) / self._total
        for key, tensor in state.items():
            values = tensor if tensor.is_floating_point() else tensor.double()
            if key not in self.sums:
                self.sums[key], self._scaled[key] = values * factor, torch.empty_like(values)
            else:  # into the same memory each time: new pages cost as much as the product
                self.sums[key] += torch.mul(values, factor, out=self._scaled[key])


def flower_mean(states: Sequence[Mapping[str, Tensor]], weights: Iterable[float]) -> dict[str, Tensor]:
    """The weighted mean of models that are all at hand, as :class:`FlowerMean` takes it.

    Args:
        states: state dicts with the same keys.
        weights: one for each.
    """
    mean = FlowerMean(weights)
    for state in states:
        mean.add(state)
    return mean.sums
