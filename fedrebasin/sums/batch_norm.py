"""The moments of what BatchNorm modules read (Git Re-Basin, A.4)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums.algebra import Sums, add_sums, demand_data
from fedrebasin.sums.moments import Moments, demand_moments, moment_sizes, moment_sums, moments_by_name
from fedrebasin.watching import Norm, watch


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
            if norm.name is not None:
                channels = norm.inputs.double().movedim(1, 0).flatten(1)
                sums.update(add_sums(sums, moment_sums(norm.name, channels)))

        watch(model, state, batch, norm=take)
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing or not finite, or a variance is negative.
        """
        demand_moments(sums, {key.rpartition(".")[0] for key in sums if "." in key}, self.name)

    def sizes(self, sums: Sums) -> dict[str, float]:
        """Numbers of values and sums of squares by name."""
        return moment_sizes(sums)

    def finish(self, sums: Sums) -> dict[str, Moments]:
        """The moments by module."""
        demand_data(sums, self.name)
        return moments_by_name(sums, dict.fromkeys(key.rpartition(".")[0] for key in sums if key.endswith(".count")))
