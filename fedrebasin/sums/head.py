"""Gram matrix and class sums of the features that a model's last layer reads (Fed3R, Fani 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, labels_of
from fedrebasin.state import State
from fedrebasin.sums.algebra import Sums, demand, demand_data, demand_rows
from fedrebasin.sums.gram import demand_positive
from fedrebasin.watching import Product, watch


@dataclass(frozen=True)
class HeadSums:
    """Gram matrix and class sums of the features that a model's last layer reads, a 1 appended.

    Payload: ``gram``, shape ``(features + 1, features + 1)``; ``classes``, shape ``(features + 1, classes)``, whose
    last row is the label histogram.

    Args:
        head: key of the last layer's weight (see ``head_weight``).
        shape: its shape, ``(classes, features)``; sums that do not fit it are then refused.
    """

    head: str
    shape: tuple[int, ...] | None = None
    name: ClassVar[str] = "head"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        if self.head not in state or not state[self.head].dim():
            raise CalibrationError(f"{self.head!r} is no weight of this model")
        classes = len(state[self.head])
        sums: dict[str, Tensor] = {}

        def take(call: Product) -> None:
            if call.weight != self.head:
                return
            features = next(call.features())[0]
            labels = labels_of(batch).reshape(-1).to(features.device)
            if call.window is not None or len(labels) != len(features):
                raise CalibrationError(
                    f"{self.head}: {len(features)} feature vectors do not fit {len(labels)} labels, one each is needed"
                )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise CalibrationError(f"{self.head}: labels must lie in 0 .. {classes - 1}")
            sums["gram"] = features.T @ features
            sums["classes"] = features.T @ nn.functional.one_hot(labels, classes).double()

        watch(model, state, batch, take)
        if not sums:
            raise CalibrationError(f"{self.head}: the model multiplies nothing with this weight")
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if they are not finite, the Gram matrix is not positive semi-definite, with the means of
                all classes taken from their examples too, the label histogram is negative, or the classes do not add up
                to the whole.
        """
        demand(sums, {"gram": None, "classes": None}, self.name)
        gram, classes = sums["gram"], sums["classes"]
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or classes.shape[:1] != gram.shape[:1]:
            raise CalibrationError(
                f"{self.name}: sums of shapes {tuple(gram.shape)} and {tuple(classes.shape)} do not fit each other"
            )
        if self.shape is not None and tuple(classes.shape) != (self.shape[1] + 1, self.shape[0]):
            raise CalibrationError(f"{self.name}: class sums of shape {tuple(classes.shape)} do not fit {self.shape}")
        demand_positive(gram, f"{self.name}: gram")
        counts = classes[-1]
        if bool((counts < 0).any()) or abs(float(counts.sum() - gram[-1, -1])) > 1e-6 * float(gram[-1, -1]):
            raise CalibrationError(f"{self.name}: the label histogram does not add up to the number of examples")
        demand_rows(sums, gram[-1, -1], f"{self.name}: gram")
        slack = 1e-6 * (gram.diagonal() * gram[-1, -1]).clamp(min=0).sqrt()
        if bool(((classes.sum(1) - gram[:, -1]).abs() > slack).any()):
            raise CalibrationError(f"{self.name}: the sums of the classes do not add up to that of all examples")
        means = classes / counts.clamp(min=torch.finfo(torch.float64).tiny)
        if bool((classes[:, counts == 0] != 0).any()):
            raise CalibrationError(f"{self.name}: sums of a class without examples")
        demand_positive(gram - means @ classes.mT, f"{self.name}: what is within the classes", gram.diagonal().amax())

    def sizes(self, sums: Sums) -> dict[str, float]:
        """The number of labels and the sum of the squares of all features."""
        return {"labels": float(sums["gram"][-1, -1]), "gram": float(sums["gram"].trace())}

    def finish(self, sums: Sums) -> Sums:
        """The sums themselves, for :func:`ridge_head`."""
        demand_data(sums, self.name)
        return sums
