"""Reciprocal orthogonality: one model's weights answer the other model's features with nothing (LEWC, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import layers_of, linear_part, record_layers
from fedrebasin.analysis.streams import Running, Spread, cosine, each_batch
from fedrebasin.batches import Batch, State, mode_of
from fedrebasin.errors import CalibrationError


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
    names = layers_of(model) if layers is None else tuple(layers)
    sums: dict[str, tuple[Running, Running]] = {}
    with mode_of(model):
        for batch in each_batch(batches):
            of_a, of_b = (record_layers(model, state, batch, names) for state in (a, b))
            for name in of_a:
                own = _terms(model, name, ((a, of_a[name].inputs), (b, of_b[name].inputs)))
                crossed = _terms(model, name, ((a, of_b[name].inputs), (b, of_a[name].inputs)))
                if not own or not crossed:
                    continue
                lengths = [torch.stack([term.norm(dim=1) for term in terms]).sum(0) for terms in (crossed, own)]
                ratios, angles = sums.setdefault(name, (Running(), Running()))
                ratios.add(lengths[0] / lengths[1].clamp_min(1e-300))
                angles.add(cosine(own[0] + own[1] + crossed[0] + crossed[1], own[0] + own[1]))
    if not sums:
        raise CalibrationError("no linear or convolutional layer ran")
    return tuple(Orthogonality(name, ratios.spread(), angles.spread()) for name, (ratios, angles) in sums.items())


def _terms(model: nn.Module, layer: str, pairs: Iterable[tuple[State, Tensor]]) -> list[Tensor]:
    found = [linear_part(model, state, layer, inputs) for state, inputs in pairs]
    return [term for term in found if term is not None]
