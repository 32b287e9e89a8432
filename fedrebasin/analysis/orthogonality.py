"""Reciprocal orthogonality: one model's weights answer the other model's features with nothing (LEWC, section 5.2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.analysis.pairs import OfLayer, Pair, cosine_fault, length_fault, measure_pair, spread_fault
from fedrebasin.analysis.streams import Spread, cosine, spread_of, spread_sums
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State


@dataclass(frozen=True)
class Orthogonality:
    """One layer's answer to the other model's features.

    Args:
        layer: its name.
        ratio: ``(|W_A z_B| + |W_B z_A|) / (|W_A z_A| + |W_B z_B|)`` over the examples, z what the layer reads (LEWC,
            Figure 7); 0 is reciprocal orthogonality.
        cosine: of ``(W_A + W_B)(z_A + z_B)`` and ``W_A z_A + W_B z_B``: how little the crossed terms turn the merged
            layer's output (LEWC, Figure 8); 1 is reciprocal orthogonality.
    """

    layer: str
    ratio: Spread
    cosine: Spread


def reciprocal_orthogonality(
    model: nn.Module, a: State, b: State, batches: Iterable[Batch], layers: Sequence[str] | None = None
) -> tuple[Orthogonality, ...]:
    """Norm ratio and cosine of the crossed terms, streamed (LEWC, section 5.2, Figures 7 and 8).

    Identities: ratio 1 and cosine 1 for a model with itself; ratio 0 and cosine 1 where the active units are disjoint
    and each model's weights read only its own. The first layer reads the same data in both models, so that its ratio is
    1: the condition speaks of the layers after it.

    Args:
        model: the module; it stays as it is.
        a: state dict of A.
        b: state dict of B.
        batches: inputs, with or without labels; read once.
        layers: names of modules; all layers by default. Those that are not linear in what they read are left out.

    Raises:
        CalibrationError: if there is no data, or no linear layer ran.
    """
    return measure_pair(Reciprocity(), model, a, b, batches, layers)


@dataclass(frozen=True)
class Reciprocity:
    """Reciprocal orthogonality as a measure of a pair: of each linear layer ``(2, 3)`` sums.

    Of the norm ratio and the cosine: count, sum and sum of squares over the examples.
    """

    part: ClassVar[str] = "reciprocity"
    shape: ClassVar[tuple[int, ...]] = (2, 3)

    def of(self, pair: Pair) -> dict[str, Tensor]:
        """The sums of every layer that is linear in what it reads."""
        found = {}
        for layer in pair.of_a:
            if (products := pair.products(layer)) is None:
                continue
            own, crossed = (products.aa, products.bb), (products.ab, products.ba)
            lengths = [terms[0].norm(dim=1) + terms[1].norm(dim=1) for terms in (crossed, own)]
            ratios = lengths[0] / lengths[1].clamp_min(1e-300)
            angles = cosine(own[0] + own[1] + crossed[0] + crossed[1], own[0] + own[1])
            found[layer] = torch.stack([spread_sums(ratios), spread_sums(angles)])
        return found

    def fault(self, sums: Tensor, rows: float) -> str:
        """What is wrong with one layer's sums."""
        return spread_fault(sums, rows) or length_fault(sums[0]) or cosine_fault(sums[1])

    def finish(self, layers: Sequence[OfLayer]) -> tuple[Orthogonality, ...]:
        """Ratio and cosine, by layer."""
        if not layers:
            raise CalibrationError("no linear or convolutional layer ran")
        return tuple(Orthogonality(layer, *(spread_of(value) for value in sums.tolist())) for _, layer, sums in layers)
