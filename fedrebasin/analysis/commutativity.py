"""Commutativity: may the models' features be exchanged under each other's weights?

LLFC, section 4.2: where ``W_A H_A + W_B H_B = W_A H_B + W_B H_A`` in every layer (W the weights, H the features that
they read) and activations are weakly additive, features are linearly connected. The difference of both sides is
``(W_A - W_B)(H_A - H_B)``: either factor may be small, and matchers make them so (LLFC, section 5 and A.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import layers_of, linear_part, record_layers
from fedrebasin.analysis.streams import each_batch, normalised_distance
from fedrebasin.batches import Batch, State, mode_of
from fedrebasin.errors import CalibrationError
from fedrebasin.matching import Matcher
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec


@dataclass(frozen=True)
class Commutativity:
    """One layer's distances, each ``|x - y|^2 / (|x| |y|)`` over weights or over the whole data set.

    Args:
        layer: its name.
        dist_com: between ``W_A H_A + W_B H_B`` and ``W_A H_B + W_B H_A`` (LLFC: Dist_com).
        dist_w: between the weights (LLFC: Dist_W).
        dist_h: between the features that the layer reads (LLFC: Dist_H).
        residual: ``|(W_A - W_B)(H_A - H_B)|^2``, summed over the examples.
        weights: ``|W_A - W_B|^2``.
        features: ``|H_A - H_B|^2``, summed over the examples.
    """

    layer: str
    dist_com: float
    dist_w: float
    dist_h: float
    residual: float
    weights: float
    features: float


def commutativity(
    model: nn.Module, a: State, b: State, batches: Iterable[Batch], layers: Sequence[str] | None = None
) -> tuple[Commutativity, ...]:
    """Dist_com, Dist_W and Dist_H of every linear or convolutional layer (LLFC, Figures 16 to 19), streamed.

    Identity: all are 0 for a model with itself; the first layer has Dist_H = Dist_com = 0, both models read the data.

    Args:
        model: the module; it stays as it is.
        a: state dict of A.
        b: state dict of B, permuted already where that is wanted.
        batches: inputs, with or without labels; read once.
        layers: names of modules; all layers by default. Those that are not linear in what they read are left out.

    Returns:
        by layer, in order of execution.

    Raises:
        CalibrationError: if there is no data, or no linear layer ran.
    """
    names = layers_of(model) if layers is None else tuple(layers)
    sums: dict[str, Tensor] = {}
    with mode_of(model):
        for batch in each_batch(batches):
            left, right = (record_layers(model, state, batch, names) for state in (a, b))
            for name in left:
                parts = [
                    linear_part(model, weights, name, record[name].inputs)
                    for weights in (a, b)
                    for record in (left, right)
                ]
                if any(part is None for part in parts):
                    continue
                aa, ab, ba, bb = (part for part in parts if part is not None)
                h_a, h_b = (record[name].inputs.double() for record in (left, right))
                own, swapped = aa + bb, ab + ba
                terms = (own - swapped, own, swapped, h_a - h_b, h_a, h_b)
                found = torch.stack([term.square().sum() for term in terms]).cpu()
                sums[name] = sums[name] + found if name in sums else found
    if not sums:
        raise CalibrationError("no linear or convolutional layer ran")
    return tuple(_measured(a, b, name, total) for name, total in sums.items())


def _measured(a: State, b: State, name: str, total: Tensor) -> Commutativity:
    base = name.partition("#")[0]
    key = f"{base}.weight" if base else "weight"
    w_a, w_b = a[key].double(), b[key].double().to(a[key].device)
    weights = float((w_a - w_b).square().sum())
    com, own, swapped, h, h_a, h_b = total.tolist()
    return Commutativity(
        layer=name,
        dist_com=normalised_distance(com, own, swapped),
        dist_w=normalised_distance(weights, float(w_a.square().sum()), float(w_b.square().sum())),
        dist_h=normalised_distance(h, h_a, h_b),
        residual=com,
        weights=weights,
        features=h,
    )


@dataclass(frozen=True)
class CommutativityObjective:
    """What a permutation achieves, summed over layers (LLFC, A.3).

    Args:
        value: ``sum_l |(W_A - W_B)(H_A - H_B)|^2``: the condition itself, both factors together.
        weights: ``sum_l |W_A - W_B|^2``, what weight matching minimises.
        features: ``sum_l |H_A - H_B|^2``, what activation matching minimises.
    """

    value: float
    weights: float
    features: float


def commutativity_objective(
    model: nn.Module, a: State, b: State, batches: Iterable[Batch], permutation: Permutation | None = None
) -> CommutativityObjective:
    """LLFC's A.3 objective of a permutation of B: a column beside every matcher. Zero iff the condition holds.

    Args:
        model: the module.
        a: state dict of A.
        b: state dict of B.
        batches: inputs, with or without labels; read once.
        permutation: applied to B first; None leaves B as it is.

    Raises:
        SpecError: if the permutation does not fit B.
        CalibrationError: as :func:`commutativity`.
    """
    found = commutativity(model, a, b if permutation is None else permutation.apply(b), batches)
    return CommutativityObjective(
        value=sum(layer.residual for layer in found),
        weights=sum(layer.weights for layer in found),
        features=sum(layer.features for layer in found),
    )


def compare_matchers(
    model: nn.Module,
    spec: PermutationSpec,
    a: State,
    b: State,
    batches: Iterable[Batch],
    matchers: Mapping[str, Matcher],
) -> dict[str, CommutativityObjective]:
    """The A.3 objective of each matcher's permutation, by the matcher's name; ``"none"`` is B as it is.

    Args:
        model: the module.
        spec: of both models.
        a: state dict of A, the reference.
        b: state dict of B, the candidate.
        batches: inputs, with or without labels; read once for each matcher.
        matchers: by name.
    """
    batches = list(batches)
    found = {"none": commutativity_objective(model, a, b, batches)}
    for name, matcher in matchers.items():
        permutation = matcher(spec, reference=a, candidate=b).permutation
        found[name] = commutativity_objective(model, a, b, batches, permutation)
    return found
