"""The moments of what BatchNorm modules read (Git Re-Basin, A.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State
from fedrebasin.sums.algebra import Sums, demand, demand_data
from fedrebasin.sums.moments import Moments, check_moments, moments
from fedrebasin.sums.registry import register_statistic
from fedrebasin.watching import Norm, watch


@register_statistic
@dataclass(frozen=True)
class BatchNormMoments:
    """Count, sum and sum of squares of the inputs of every BatchNorm module, by channel.

    The input of a BatchNorm module depends on how the ones before it normalise. With ``normalise="batch"`` each uses
    the batch at hand, as in training: one pass is enough, but what a batch contributes to deeper modules depends on
    who else is in it. With ``normalise="state"`` the running statistics of ``state`` are used: sums are then
    independent of batching and of how data are split, and repeating the pass makes one more module in depth exact
    each time.

    Args:
        normalise: "batch" or "state".
    """

    normalise: str = "batch"
    name: ClassVar[str] = "batch_norm"

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm modules normalise with each batch's own moments."""
        return self.normalise == "batch"

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """``NAME.count``, ``NAME.sum`` and ``NAME.squares`` for each BatchNorm module NAME."""
        sums: dict[str, Tensor] = {}

        def take(norm: Norm) -> None:
            if norm.name is None:
                return
            rows = norm.inputs.double().movedim(1, 0).flatten(1)
            values = {
                f"{norm.name}.count": torch.tensor(float(rows.shape[1]), dtype=torch.float64, device=rows.device),
                f"{norm.name}.sum": rows.sum(1),
                f"{norm.name}.squares": rows.square().sum(1),
            }
            for key, value in values.items():
                sums[key] = sums[key] + value if key in sums else value

        watch(model, state, batch, norm=take)
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing or not finite, or a variance is negative.
        """
        names = {key.rpartition(".")[0] for key in sums if "." in key}
        demand(sums, {f"{name}.{part}": None for name in names for part in ("count", "sum", "squares")}, self.name)
        for name in names:
            count, total, squares = (sums[f"{name}.{part}"] for part in ("count", "sum", "squares"))
            if count.dim() != 0 or total.dim() != 1 or total.shape != squares.shape:
                raise CalibrationError(f"{self.name}: {name} has sums of wrong shapes")
            check_moments(count, total, squares, f"{self.name}: {name}")

    def finish(self, sums: Sums) -> dict[str, Moments]:
        """The moments by module."""
        demand_data(sums, self.name)
        names = dict.fromkeys(key.rpartition(".")[0] for key in sums if key.endswith(".count"))
        return {name: moments(sums[f"{name}.count"], sums[f"{name}.sum"], sums[f"{name}.squares"]) for name in names}
