"""The loss along a straight path between two models as one statistic: all points in one pass over the data."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.analysis.barrier import Barrier, barrier_value, interpolate
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums import Evaluation, Sums, demand, demand_data, demand_losses

_MOST_POINTS = 1000


@dataclass(frozen=True)
class PathEvaluation:
    """Loss and accuracy at evenly spaced positions between two models, as a statistic of the first one.

    Payload: ``loss`` and ``correct``, shape ``(points,)``; ``labels``, shape ``()``. All points are taken on
    the same examples; one point's model at a time is in memory.

    Identity: ``PathEvaluation(b, n).finish(collect_sums(PathEvaluation(b, n), model, a, batches))`` is
    ``loss_barrier(model, a, b, batches, n)``.

    Args:
        other: state dict at lam = 1; the model that the statistic is taken of is at 0.
        points: both ends included.

    Raises:
        CalibrationError: if there are fewer than 2 points, or more than 1000.
    """

    other: State
    points: int = 5
    name: ClassVar[str] = "path_evaluation"
    batch_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 2 <= self.points <= _MOST_POINTS:
            raise CalibrationError(f"{self.name}: {self.points} points: 2 (both ends) to {_MOST_POINTS} are possible")

    @property
    def lams(self) -> tuple[float, ...]:
        """The positions; 0 is the model that the statistic is taken of."""
        return tuple(torch.linspace(0, 1, self.points, dtype=torch.float64).tolist())

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """Total loss and correct predictions at each point, and the labels, float64.

        Raises:
            MergeError: if the models differ in keys or shapes.
        """
        found = [Evaluation().from_batch(model, interpolate(state, self.other, lam), batch) for lam in self.lams]
        return {
            "loss": torch.stack([point["loss"] for point in found]),
            "correct": torch.stack([point["correct"] for point in found]),
            "labels": found[0]["labels"],
        }

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if an entry is missing, misshapen or not finite, or see :func:`demand_losses`.
        """
        demand(sums, {"loss": (self.points,), "correct": (self.points,), "labels": ()}, self.name)
        if unknown := set(sums) - {"loss", "correct", "labels", "examples"}:
            raise CalibrationError(f"{self.name}: {sorted(unknown)[0]!r} was not asked for")
        demand_losses(sums, self.name)

    def sizes(self, sums: Sums) -> dict[str, float]:
        """The number of labels."""
        return {"labels": float(sums["labels"])}

    def finish(self, sums: Sums) -> Barrier:
        """The losses, accuracies and the barrier (Git Re-Basin, Definition 2.2).

        Raises:
            CalibrationError: without data.
        """
        demand_data(sums, self.name)
        labels = float(sums["labels"])
        losses = tuple((sums["loss"] / labels).tolist())
        accuracies = tuple((sums["correct"] / labels).tolist())
        return Barrier(self.lams, losses, accuracies, barrier_value(losses), (1.0,) * self.points)
