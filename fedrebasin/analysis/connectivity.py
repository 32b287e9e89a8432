"""Are the features of a merged model a weighted sum of the features of the models? Linearly, or with decaying weights.

Two laws are compared with the same three numbers. With lam = 0 at A and 1 at B, z the features of a layer and ``l`` its
depth (the first layer has 1):

- ``"linear"``: layerwise linear feature connectivity, ``z(merged) ~ (1 - lam) z(A) + lam z(B)`` (LLFC, Definition 2,
  whose alpha is 1 - lam).
- ``"exponential"``: layerwise exponentially weighted connectivity,
  ``z(merged) = (1 - lam)^l z(A) + lam^l z(B)`` (LEWC, Definition 4.1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedrebasin.analysis.barrier import interpolate
from fedrebasin.analysis.features import Where, layer_features
from fedrebasin.analysis.pairs import OfLayer, Pair, cosine_fault, length_fault, measure_pair, spread_fault
from fedrebasin.analysis.streams import Spread, cosine, spread_of, spread_sums
from fedrebasin.errors import MergeError
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.state import State
from fedrebasin.sums import evaluate

Law = Literal["linear", "exponential"]


@dataclass(frozen=True)
class LayerConnectivity:
    """How one layer's features at one position of the path follow a law.

    Args:
        layer: its name.
        depth: its place in the order of execution, from 1; the exponent of the exponential law.
        lam: the position.
        cosine: of the merged model's features and the law's weighted sum, over the examples (LLFC: cosine_alpha).
        baseline: the cosine of A's and B's features (LLFC: cosine_A,B).
        coefficient: ``|z| cosine / |weighted sum|``, 1 if the law holds in length too (LLFC: coef_alpha).
        norm: the merged model's ``|z|`` (LEWC, Figure 20).
        norms: those of A and B.
    """

    layer: str
    depth: int
    lam: float
    cosine: Spread
    baseline: Spread
    coefficient: Spread
    norm: Spread
    norms: tuple[Spread, Spread]


def law_weights(law: Law, lam: float, depth: int) -> tuple[float, float]:
    """The shares of A and B in the features after ``depth`` layers.

    Raises:
        MergeError: for an unknown law.
    """
    if law == "linear":
        return 1 - lam, lam
    if law == "exponential":
        return float((1 - lam) ** depth), float(lam**depth)
    raise MergeError(f"law {law!r} is neither 'linear' (LLFC) nor 'exponential' (LEWC)")


def feature_connectivity(
    model: nn.Module,
    a: State,
    b: State,
    batches: Iterable[Batch],
    lams: Sequence[float] = (0.5,),
    law: Law = "linear",
    *,
    where: Where = "after",
    layers: Sequence[str] | None = None,
) -> tuple[LayerConnectivity, ...]:
    """Compare the features of merged models with the law's weighted sums, streamed over the batches.

    Identities: of a model with itself every cosine is 1, and for "linear" every coefficient too; a net of one layer
    follows both laws exactly; a linear net with A = B in all layers but one follows "linear" exactly. At lam = 1/2 the
    cosines of the two laws are equal.

    Args:
        model: the module; it stays as it is.
        a: state dict at lam = 0.
        b: state dict at lam = 1.
        batches: inputs, with or without labels; read once.
        lams: positions.
        law: "linear" (LLFC, Figures 8 to 15) or "exponential" (LEWC, Definition 4.1).
        where: the features after the activation, as both papers have them, or before it.
        layers: names of modules to look at; all layers by default. Depths count within them.

    Returns:
        for each position, for each layer in order of execution.

    Raises:
        MergeError: if the models do not fit each other or the law is unknown.
        CalibrationError: if there is no data, or no layer ran.
    """
    found = measure_pair(FeatureLaw(tuple(lams), law, where), model, a, b, batches, layers)
    return tuple(layer for position in range(len(lams)) for layer in found[position :: len(lams)])


@dataclass(frozen=True)
class FeatureLaw:
    """A law of the features as a measure of a pair: of each layer ``(positions, values, 3)`` sums.

    Values are ``cosine``, ``baseline``, ``coefficient`` and the norms of the merged model, A and B; of each one its
    count, its sum and the sum of its squares over the examples.

    Args:
        lams: positions.
        law: "linear" or "exponential".
        where: "after" or "before" the activation.

    Raises:
        MergeError: if the law is unknown.
    """

    lams: tuple[float, ...] = (0.5,)
    law: Law = "linear"
    where: Where = "after"
    part: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        law_weights(self.law, 0.5, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions, values, and count, sum, sum of squares."""
        return (len(self.lams), 6, 3)

    def of(self, pair: Pair) -> dict[str, Tensor]:
        """The sums of every layer."""
        of_a, of_b = (layer_features(record, self.where) for record in (pair.of_a, pair.of_b))
        rows: dict[str, list[Tensor]] = {layer: [] for layer in of_a}
        for lam in self.lams:
            of_merged = layer_features(pair.merged(lam), self.where)
            for depth, layer in enumerate(of_a, 1):
                shares = law_weights(self.law, lam, depth)
                values = _values(of_merged[layer], of_a[layer], of_b[layer], shares)
                rows[layer].append(torch.stack([spread_sums(value) for value in values]))
        return {layer: torch.stack(found) for layer, found in rows.items() if found}

    def fault(self, sums: Tensor, rows: float) -> str:
        """What is wrong with one layer's sums."""
        return spread_fault(sums, rows) or cosine_fault(sums[:, :2]) or length_fault(sums[:, 3:])

    def finish(self, layers: Sequence[OfLayer]) -> tuple[LayerConnectivity, ...]:
        """For each layer, for each position."""
        found = []
        for depth, layer, sums in layers:
            for lam, values in zip(self.lams, sums.tolist(), strict=True):
                cosine, baseline, coefficient, norm, *norms = (spread_of(value) for value in values)
                of_both = (norms[0], norms[1])
                found.append(LayerConnectivity(layer, depth, lam, cosine, baseline, coefficient, norm, of_both))
        return tuple(found)


def _values(merged: Tensor, a: Tensor, b: Tensor, shares: tuple[float, float]) -> tuple[Tensor, ...]:
    expected = shares[0] * a + shares[1] * b
    angle, length = cosine(merged, expected), expected.norm(dim=1)
    scale = merged.norm(dim=1) / length.clamp_min(1e-300)
    both_zero = (length == 0) & (merged.norm(dim=1) == 0)
    coefficient = (angle * scale).masked_fill(both_zero, 1.0)
    return angle, cosine(a, b), coefficient, merged.norm(dim=1), a.norm(dim=1), b.norm(dim=1)


@dataclass(frozen=True)
class ErrorBound:
    """LLFC's Lemma 1 on data: the merged model's error and twice the larger error of the two models.

    Args:
        lam: the position.
        error: of the merged model, in [0, 1].
        bound: ``2 max(error of A, error of B)``.
        cosine: of the model's output with the linear law's sum: how far the lemma's premise is met.
    """

    lam: float
    error: float
    bound: float
    cosine: float

    @property
    def holds(self) -> bool:
        """Whether the error keeps the bound."""
        return self.error <= self.bound + 1e-12


def lemma_1(
    model: nn.Module, a: State, b: State, batches: Iterable[Batch], lams: Sequence[float] = (0.5,)
) -> tuple[ErrorBound, ...]:
    """Check LLFC's Lemma 1: feature connectivity of the model's output keeps the error below twice the larger one.

    Where the logits are a positive multiple of ``(1 - lam) z(A) + lam z(B)``, the merged model errs only on examples on
    which A or B does: ``error <= error(A) + error(B) <= 2 max``. Models whose cosine is below 1 may break the bound.

    Args:
        model: the module.
        a: state dict at lam = 0.
        b: state dict at lam = 1.
        batches: ``(inputs, labels)``, read more than once.
        lams: positions.

    Raises:
        CalibrationError: if there is no data, or it can be read only once.
    """
    demand_reiterable(batches, "Lemma 1")
    bound = 2 * max(1 - evaluate(model, state, batches).accuracy for state in (a, b))
    whole = feature_connectivity(model, a, b, batches, lams, layers=[""])
    cosines = {layer.lam: layer.cosine.mean for layer in whole}
    return tuple(
        ErrorBound(lam, 1 - evaluate(model, interpolate(a, b, lam), batches).accuracy, bound, cosines[lam])
        for lam in lams
    )
