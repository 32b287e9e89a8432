"""Commutativity: may the models' features be exchanged under each other's weights?

LLFC, section 4.2: where ``W_A H_A + W_B H_B = W_A H_B + W_B H_A`` in every layer (W the weights, H the features that
they read) and activations are weakly additive, features are linearly connected. The difference of both sides is
``(W_A - W_B)(H_A - H_B)``: either factor may be small, and matchers make them so (LLFC, section 5 and A.3).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.analysis.pairs import OfLayer, Pair, distance_fault, measure_pair
from fedrebasin.analysis.streams import normalised_distance
from fedrebasin.analysis.weights import weight_of
from fedrebasin.errors import CalibrationError
from fedrebasin.matching import Matcher
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State


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
    found = measure_pair(Commutation(), model, a, b, batches, layers)
    return tuple(_with_weights(model, a, b, distances) for distances in found)


@dataclass(frozen=True)
class FeatureDistances:
    """What data say of one layer's :class:`Commutativity`; the distances of the weights need none.

    Args:
        layer: its name.
        dist_com: as there.
        dist_h: as there.
        residual: as there.
        features: as there.
    """

    layer: str
    dist_com: float
    dist_h: float
    residual: float
    features: float


@dataclass(frozen=True)
class Commutation:
    """Commutativity as a measure of a pair: of each linear layer six squared norms, summed over the examples.

    They are those of ``(W_A - W_B)(H_A - H_B)``, ``W_A H_A + W_B H_B``, ``W_A H_B + W_B H_A``, ``H_A - H_B``, ``H_A``
    and ``H_B``.
    """

    part: ClassVar[str] = "commutation"
    shape: ClassVar[tuple[int, ...]] = (6,)

    def of(self, pair: Pair) -> dict[str, Tensor]:
        """The sums of every layer that is linear in what it reads."""
        found = {}
        for layer, recorded in pair.of_a.items():
            if (products := pair.products(layer)) is None:
                continue
            h_a, h_b = recorded.inputs.double(), pair.of_b[layer].inputs.double()
            own, swapped = products.aa + products.bb, products.ab + products.ba
            terms = (own - swapped, own, swapped, h_a - h_b, h_a, h_b)
            found[layer] = torch.stack([term.square().sum() for term in terms])
        return found

    def fault(self, sums: Tensor, rows: float) -> str:
        """What is wrong with one layer's sums."""
        return distance_fault(*sums[:3]) or distance_fault(*sums[3:])

    def finish(self, layers: Sequence[OfLayer]) -> tuple[FeatureDistances, ...]:
        """The distances, by layer."""
        if not layers:
            raise CalibrationError("no linear or convolutional layer ran")
        found = []
        for _, layer, sums in layers:
            com, own, swapped, h, h_a, h_b = sums.tolist()
            distances = normalised_distance(com, own, swapped), normalised_distance(h, h_a, h_b)
            found.append(FeatureDistances(layer, *distances, residual=com, features=h))
        return tuple(found)


def _with_weights(model: nn.Module, a: State, b: State, distances: FeatureDistances) -> Commutativity:
    w_a, w_b = (weight_of(model, state, distances.layer) for state in (a, b))
    if w_a is None or w_b is None:
        raise CalibrationError(f"{distances.layer}: the state dict holds no weight of this layer")
    w_b = w_b.to(w_a.device)
    weights = float((w_a - w_b).square().sum())
    dist_w = normalised_distance(weights, float(w_a.square().sum()), float(w_b.square().sum()))
    return Commutativity(**asdict(distances), dist_w=dist_w, weights=weights)


@dataclass(frozen=True)
class CommutativityObjective:
    """What a permutation achieves, summed over layers (LLFC, A.3).

    Args:
        value: ``sum_l |(W_A - W_B)(H_A - H_B)|^2``: the condition itself, both factors together.
        weights: ``sum_l |W_A - W_B|^2``, what weight matching minimises; a layer that runs twice has one weight.
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
        weights=sum(layer.weights for layer in found if "#" not in layer.layer),
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

    Raises:
        CalibrationError: as :func:`commutativity`, and if the batches can be read only once.
    """
    demand_reiterable(batches, "comparing matchers")
    found = {"none": commutativity_objective(model, a, b, batches)}
    for name, matcher in matchers.items():
        permutation = matcher(spec, reference=a, candidate=b).permutation
        found[name] = commutativity_objective(model, a, b, batches, permutation)
    return found
