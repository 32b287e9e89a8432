"""One layer's features in the merged model against a client's own pre-activations."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums.algebra import Sums, demand, demand_data
from fedrebasin.sums.gram import demand_positive
from fedrebasin.watching import Product, affine_matrix, watch


@dataclass(frozen=True)
class LayerRegression:
    """Sums for one layer: features x of the model that is being merged, pre-activations y of the client's own model.

    Payload: ``gram``, the sum of ``x x^T``, shape ``(blocks, features + 1, features + 1)`` (without the 1 where the
    layer has no bias); ``cross``, the sum of ``x y^T``, shape ``(blocks, features + 1, rows / blocks)``.

    Args:
        weight: key of the layer's weight.
        own: the client's state dict. If it is not aligned, the columns of ``cross`` are in its own order of units.
    """

    weight: str
    own: State
    name: ClassVar[str] = "layer_regression"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        merged, own = (self._calls(model, each, batch) for each in (state, self.own))
        if not merged or len(merged) != len(own):
            raise CalibrationError(f"{self.weight}: the model does not multiply data with this weight")
        sums: dict[str, Tensor] = {}
        for left, right in zip(merged, own, strict=True):
            matrix = affine_matrix(self.own, self.weight, left.number_of_blocks)
            blocks = slice(left.blocks.start, left.blocks.stop)
            size = matrix.shape[-1]
            for features, others in zip(left.features(), right.features(), strict=True):
                x, y = features[..., :size], others[..., :size] @ matrix[blocks].mT
                for key, part in (("gram", x.mT @ x), ("cross", x.mT @ y)):
                    if key not in sums:
                        sums[key] = part.new_zeros(left.number_of_blocks, *part.shape[1:])
                    sums[key][blocks] += part
        return sums

    def _calls(self, model: nn.Module, state: State, batch: Batch) -> list[Product]:
        calls: list[Product] = []

        def keep(call: Product) -> None:
            if call.weight == self.weight:
                calls.append(call)

        watch(model, state, batch, keep)
        return calls

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if they are not finite, do not fit the layer, or the Gram matrix is not positive
                semi-definite.
        """
        demand(sums, {"gram": None, "cross": None}, self.name)
        gram, cross = sums["gram"], sums["cross"]
        if gram.dim() != 3 or gram.shape[1] != gram.shape[2] or cross.shape[:2] != gram.shape[:2]:
            raise CalibrationError(
                f"{self.name}: sums of shapes {tuple(gram.shape)} and {tuple(cross.shape)} do not fit each other"
            )
        _, rows, features = affine_matrix(self.own, self.weight).shape
        if gram.shape[1] != features or not len(gram) or len(gram) * cross.shape[2] != rows:
            raise CalibrationError(f"{self.name}: {self.weight} has no sums of shape {tuple(cross.shape)}")
        demand_positive(gram, f"{self.name}: {self.weight}")

    def sizes(self, sums: Sums) -> dict[str, float]:
        """The sum of the squares of all features, and how large the products with the pre-activations are."""
        return {
            "gram": float(sums["gram"].diagonal(dim1=-2, dim2=-1).sum()),
            "cross": float(torch.linalg.vector_norm(sums["cross"])),
        }

    def finish(self, sums: Sums) -> Sums:
        """The sums themselves, for :func:`regressed_layer`."""
        demand_data(sums, self.name)
        return sums
