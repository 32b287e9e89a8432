"""The moments of what the units of given layers put out: the sums of REPAIR (Jordan 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums.algebra import Sums, add_sums, demand_data
from fedrebasin.sums.moments import (
    Moments,
    correction,
    demand_moments,
    moment_sizes,
    moment_sums,
    moments,
    moments_by_name,
)
from fedrebasin.watching import Product, bias_of, watch


@dataclass(frozen=True)
class PreActivationMoments:
    """Count, sum and sum of squares of what each unit of each weight puts out, its bias included.

    Payload: ``KEY.count``, shape (); ``KEY.sum`` and ``KEY.squares``, shape ``(units,)``.

    With ``targets`` the outputs are given those moments, batch by batch, before they go on, so that one pass measures
    every layer behind repaired ones; sums then depend on the batching, as BatchNorm's do.

    Args:
        weights: keys of the weights, which must be multiplied with data as a whole.
        targets: moments by weight, or none.
    """

    weights: tuple[str, ...]
    targets: Mapping[str, Moments] = field(default_factory=dict)
    name: ClassVar[str] = "pre_activations"

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm modules normalise with each batch's own moments: as the layers do."""
        return bool(self.targets)

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        sums: dict[str, Tensor] = {}

        def take(call: Product) -> Tensor | None:
            if call.weight not in self.weights or call.rows != call.total:
                return None
            values = call.outputs.double()
            bias = bias_of(call.weight, state)
            later = state[bias].double() if bias is not None and not call.has_bias else torch.zeros_like(values[0])
            values = values + later
            own = moment_sums(call.weight, values.mT)
            sums.update(add_sums(sums, own))
            if call.weight not in self.targets:
                return None
            scale, shift = correction(moments(*own.values()), self.targets[call.weight], bias is not None)
            return call.like_output((values * scale + shift - later).to(call.output.dtype))

        watch(model, state, batch, take)
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing or not finite, or a variance is negative.
        """
        demand_moments(sums, self.weights, self.name)

    def sizes(self, sums: Sums) -> dict[str, float]:
        """Numbers of values and sums of squares by name."""
        return moment_sizes(sums)

    def finish(self, sums: Sums) -> dict[str, Moments]:
        """The moments by weight."""
        demand_data(sums, self.name)
        return moments_by_name(sums, self.weights)
