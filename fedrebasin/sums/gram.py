"""Gram matrices of what each weight is multiplied with: RegMean's sums, and how they permute."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.spec import Permutation
from fedrebasin.state import State
from fedrebasin.sums.algebra import EXAMPLES, Sums, demand, demand_data, demand_rows
from fedrebasin.watching import Product, watch

_GRAM, _DIAGONAL = ".gram", ".diagonal"


@dataclass(frozen=True)
class GramMatrices:
    """``sum x x^T`` over the features x that each weight meets, a 1 appended: the sums of RegMean (Jin 2023).

    Payload: ``KEY.gram``, shape ``(blocks, features + 1, features + 1)``; or, for weights with more features than
    ``max_features``, ``KEY.diagonal``, shape ``(blocks, features + 1)``. Blocks are the groups of a grouped
    convolution, or the query, key and value rows of a packed projection that read different inputs; else there is
    one. A diagonal permutes with its units as a full matrix does; it keeps each feature's size and loses their
    correlations.

    Args:
        max_features: the largest matrix that is sent whole; None for no limit.
        single_precision: multiply in float32 and add up in float64: right to about six digits, and 1.4 times as fast
            on one CPU core (MLP of width 512, VGG-11 of a quarter of its width).
    """

    max_features: int | None = None
    single_precision: bool = False
    name: ClassVar[str] = "gram"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The Gram matrices of one batch, float64."""
        sums: dict[str, Tensor] = {}

        def take(call: Product) -> None:
            for features in call.features():
                size = features.shape[-1]
                whole = self.max_features is None or size - 1 <= self.max_features
                if self.single_precision:
                    features = features.float()
                parts = (features.mT @ features if whole else features.square().sum(1)).double()
                key = call.weight + (_GRAM if whole else _DIAGONAL)
                if key not in sums:
                    sums[key] = parts.new_zeros(call.number_of_blocks, *parts.shape[1:])
                # Rows of a packed projection that read the same input share it; groups bring one part each.
                sums[key][call.blocks.start : call.blocks.stop] += parts

        watch(model, state, batch, take)
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse matrices that no data can have.

        Raises:
            CalibrationError: if one is not finite, not symmetric or not positive semi-definite, or sums over more
                values than the examples can have.
        """
        demand(sums, {}, self.name)
        for key, tensor in sums.items():
            if key == EXAMPLES:
                continue
            if key.endswith(_DIAGONAL):
                if tensor.dim() != 2 or bool((tensor < 0).any()):
                    raise CalibrationError(f"{self.name}: {key} is no diagonal of positive semi-definite matrices")
                demand_rows(sums, tensor[..., -1], f"{self.name}: {key}")
                continue
            if not key.endswith(_GRAM) or tensor.dim() != 3 or tensor.shape[1] != tensor.shape[2]:
                raise CalibrationError(f"{self.name}: {key} of shape {tuple(tensor.shape)} is no Gram matrix")
            demand_positive(tensor, f"{self.name}: {key}")
            demand_rows(sums, tensor[..., -1, -1], f"{self.name}: {key}")

    def sizes(self, sums: Sums) -> dict[str, float]:
        """By weight the trace: the sum of the squares of all features."""
        return {
            key: float((tensor if key.endswith(_DIAGONAL) else tensor.diagonal(dim1=-2, dim2=-1)).sum())
            for key, tensor in sums.items()
            if key != EXAMPLES
        }

    def finish(self, sums: Sums) -> dict[str, Tensor]:
        """The matrices by weight: shape ``(blocks, features + 1, features + 1)``, or without the last dimension."""
        demand_data(sums, self.name)
        return {key.rpartition(".")[0]: tensor for key, tensor in sums.items() if key != EXAMPLES}


def demand_positive(matrix: Tensor, where: str, scale: Tensor | None = None) -> None:
    """Refuse a matrix that is not symmetric positive semi-definite, rounding of float32 allowed for.

    Args:
        matrix: shape ``(..., n, n)``.
        where: begins the message.
        scale: what rounding is relative to: the largest entry of the diagonal, or what the matrix is the rest of.

    Raises:
        CalibrationError: if it is not.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).amax(-1) if scale is None else scale
    asymmetry = (matrix - matrix.mT).abs().amax((-2, -1))
    if bool((asymmetry > 1e-6 * scale.abs()).any()):
        raise CalibrationError(f"{where} is not symmetric")
    # A Cholesky factor of the matrix moved up by rounding exists exactly if no eigenvalue lies below -rounding.
    slack = 1e-6 * scale.abs() + torch.finfo(torch.float64).tiny
    moved = matrix.double() + slack[..., None, None] * torch.eye(
        matrix.shape[-1], dtype=torch.float64, device=matrix.device
    )
    if bool((scale < 0).any()) or bool(torch.linalg.cholesky_ex(moved).info.any()):
        raise CalibrationError(f"{where} is not positive semi-definite")


def _moved(permutation: Permutation, marks: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
    return permutation.apply({**state, **marks})


def feature_order(permutation: Permutation, state: State, blocks: Mapping[str, int]) -> dict[str, Tensor]:
    """Where the features of each weight come from: ``permuted weight[row, f] = weight[row', order[f]]``.

    Found by permuting tensors that hold their own position, so that every layout (a flattened image, heads, grouped
    channels) is right by construction.

    Args:
        permutation: the member.
        state: any state dict of the model; only shapes count.
        blocks: by weight, how many blocks of rows have features of their own.

    Returns:
        by weight, shape ``(blocks, features)``: flat indices into all blocks' features.
    """
    marks = {}
    for key, count in blocks.items():
        features = math.prod(state[key].shape[1:])
        places = torch.arange(count * features).reshape(count, 1, features)
        rows = places.expand(count, len(state[key]) // count, features)
        marks[key] = rows.reshape(state[key].shape).contiguous()
    moved = _moved(permutation, marks, state)
    return {key: moved[key].reshape(count, -1, math.prod(state[key].shape[1:]))[:, 0] for key, count in blocks.items()}


def unit_order(permutation: Permutation, state: State, weights: list[str]) -> dict[str, Tensor]:
    """Where the output units of each weight come from: ``permuted weight[i] = weight[order[i]]``, up to features."""
    marks = {}
    for key in weights:
        shape = state[key].shape
        marks[key] = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()
    moved = _moved(permutation, marks, state)
    return {key: moved[key].reshape(len(moved[key]), -1)[:, 0] for key in weights}


def permute_gram(permutation: Permutation, state: State, grams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gram matrices taken on a model, as they would be if taken on the permuted model.

    Law: ``permute_gram(p, state, gram of state) == gram of p.apply(state)``.

    Args:
        permutation: the member.
        state: a state dict of the model; only shapes count.
        grams: by weight, as :meth:`GramMatrices.finish` returns them.

    Returns:
        the same, in the coordinates of ``permutation.apply(state)``.

    Raises:
        CalibrationError: if a matrix fits no weight.
    """
    for key, gram in grams.items():
        features = math.prod(state[key].shape[1:]) if key in state else -1
        if gram.shape[1] != features + 1 or len(state[key]) % len(gram):
            raise CalibrationError(f"{key}: a Gram matrix of shape {tuple(gram.shape)} fits no weight")
    orders = feature_order(permutation, state, {key: len(gram) for key, gram in grams.items()})
    result = {}
    for key, gram in grams.items():
        features = gram.shape[1] - 1
        order = orders[key].to(gram.device)
        source = order[:, :1] // features  # the block whose features these are
        inner = torch.cat([order % features, torch.full_like(source, features)], 1)
        if gram.dim() == 2:
            result[key] = gram[source, inner]
        else:
            result[key] = gram[source[..., None], inner[:, :, None], inner[:, None, :]]
    return result
