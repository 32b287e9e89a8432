"""Regression layer by layer: the merged model's own features are regressed on the clients' pre-activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.affine import AffineCall, affine_matrix, affine_weights, watch, with_affine_matrix
from fedrebasin.calibration.regression import solve_symmetric
from fedrebasin.errors import CalibrationError, MergeError
from fedrebasin.running import Batch, State, demand_reiterable, number_of_examples
from fedrebasin.sums import Sums, add_sums, collect_sums, demand, demand_data, demand_positive


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

    def _calls(self, model: nn.Module, state: State, batch: Batch) -> list[AffineCall]:
        calls: list[AffineCall] = []

        def keep(call: AffineCall) -> None:
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

    def finish(self, sums: Sums) -> Sums:
        """The sums themselves, for :func:`regressed_layer`."""
        demand_data(sums, self.name)
        return sums


def regressed_layer(state: State, weight: str, sums: Sums, ridge: float = 1e-3) -> dict[str, Tensor]:
    """A model whose layer ``weight`` is the least-squares map from its features to the clients' pre-activations.

    Args:
        state: the model that is being merged.
        weight: key of the layer's weight.
        sums: of :class:`LayerRegression`, over all clients, with units in the order of ``state``.
        ridge: pull towards the layer as it is, relative to the mean of the Gram matrix's diagonal.

    Raises:
        MergeError: if there are no sums, or the matrix is singular and ``ridge`` is 0.
    """
    if not sums:
        raise MergeError(f"{weight}: there are no sums; no client has data")
    gram, cross = sums["gram"].double(), sums["cross"].double()
    prior = affine_matrix(state, weight, len(gram)).to(gram.device)
    pull = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    pull = torch.where(pull > 0, pull, float(ridge > 0))[:, None]
    solution = solve_symmetric(
        gram + torch.diag_embed(pull.expand(gram.shape[:2])), cross + pull[..., None] * prior.mT, weight
    )
    return {**state, **with_affine_matrix(state, weight, solution.mT)}


def sequential_regression(
    model: nn.Module,
    states: Sequence[State],
    clients: Sequence[Iterable[Batch]],
    average: State,
    ridge: float = 1e-3,
) -> dict[str, Tensor]:
    """Layer by layer, the merged model's features regressed on the clients' pre-activations; a round of sums a layer.

    RegMean's Gram matrices are of each client's own features; what reaches a deep layer of the merged model differs
    from them, and here each layer is fitted to what really reaches it.

    Identity: equal models give that model.

    Args:
        model: the module; neither its parameters nor its mode change.
        states: the clients' models, aligned.
        clients: for each its batches, read once for each layer.
        average: the average of the models: where the regression starts from and what it is pulled towards.
        ridge: how strongly, relative to the mean of each Gram matrix's diagonal.

    Returns:
        a state dict; parameters that are not multiplied with data are shared with ``average``.

    Raises:
        MergeError: if there are not as many clients as models, or no data.
    """
    if len(states) != len(clients) or not states:
        raise MergeError(f"{len(states)} models and {len(clients)} clients' data: as many are needed, at least one")
    for batches in clients:
        demand_reiterable(batches, "sequential regression")
    first = next((batch for batches in clients for batch in batches if number_of_examples(batch)), None)
    if first is None:
        raise MergeError("sequential regression: no client has data")
    result = dict(average)
    for weight in affine_weights(model, average, first):
        sums: Sums = {}
        for own, batches in zip(states, clients, strict=True):
            statistic = LayerRegression(weight, own)
            sums = add_sums(sums, collect_sums(statistic, model, result, batches))
        result = regressed_layer(result, weight, sums, ridge)
    return result
