"""Are the features of a merged model a weighted sum of the features of the models? Linearly, or with decaying weights.

Two laws are compared with the same three numbers. With lam = 0 at A and 1 at B, z the features of a layer and ``l`` its
depth (the first layer has 1):

- ``"linear"``: layerwise linear feature connectivity, ``z(merged) ~ (1 - lam) z(A) + lam z(B)`` (LLFC, Definition 2,
  whose alpha is 1 - lam).
- ``"exponential"``: layerwise exponentially weighted connectivity,
  ``z(merged) = (1 - lam)^l z(A) + lam^l z(B)`` (LEWC, Definition 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fedrebasin.analysis.barrier import interpolate
from fedrebasin.analysis.features import Where, layer_features, layers_of, record_layers
from fedrebasin.analysis.streams import Running, Spread, cosine, each_batch
from fedrebasin.batches import Batch, State, mode_of
from fedrebasin.calibration import evaluate
from fedrebasin.errors import MergeError

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
    law_weights(law, 0.5, 1)
    names = layers_of(model) if layers is None else tuple(layers)
    merged = [interpolate(a, b, lam) for lam in lams]
    sums: dict[tuple[int, str], dict[str, Running]] = {}
    order: list[str] = []
    with mode_of(model):
        for batch in each_batch(batches):
            of_a, of_b = (layer_features(record_layers(model, state, batch, names), where) for state in (a, b))
            order = list(of_a)
            for index, (lam, state) in enumerate(zip(lams, merged, strict=True)):
                of_merged = layer_features(record_layers(model, state, batch, names), where)
                for depth, layer in enumerate(order, 1):
                    shares = law_weights(law, lam, depth)
                    values = _values(of_merged[layer], of_a[layer], of_b[layer], shares)
                    running = sums.setdefault((index, layer), {key: Running() for key in values})
                    for key, value in values.items():
                        running[key].add(value)
    found = []
    for index, lam in enumerate(lams):
        for depth, layer in enumerate(order, 1):
            of = {key: running.spread() for key, running in sums[index, layer].items()}
            norms = (of["norm_a"], of["norm_b"])
            found.append(
                LayerConnectivity(layer, depth, lam, of["cosine"], of["baseline"], of["coefficient"], of["norm"], norms)
            )
    return tuple(found)


def _values(merged: Tensor, a: Tensor, b: Tensor, shares: tuple[float, float]) -> dict[str, Tensor]:
    expected = shares[0] * a + shares[1] * b
    angle, length = cosine(merged, expected), expected.norm(dim=1)
    scale = merged.norm(dim=1) / length.clamp_min(1e-300)
    both_zero = (length == 0) & (merged.norm(dim=1) == 0)
    return {
        "cosine": angle,
        "baseline": cosine(a, b),
        "coefficient": (angle * scale).masked_fill(both_zero, 1.0),
        "norm": merged.norm(dim=1),
        "norm_a": a.norm(dim=1),
        "norm_b": b.norm(dim=1),
    }


@dataclass(frozen=True)
class ErrorBound:
    """LLFC's Lemma 1 on data: the merged model's error and twice the larger error of the two models.

    Args:
        lam: the position.
        error: of the merged model, in [0, 1].
        bound: ``2 max(error of A, error of B)``.
        cosine: of the last layer's features with the linear law's sum: how far the lemma's premise is met.
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
    """Check LLFC's Lemma 1: feature connectivity of the last layer keeps the error below twice the larger one.

    Args:
        model: the module.
        a: state dict at lam = 0.
        b: state dict at lam = 1.
        batches: ``(inputs, labels)``, read more than once.
        lams: positions.

    Raises:
        CalibrationError: if there is no data, or it can be read only once.
    """
    batches = list(batches)
    bound = 2 * max(1 - evaluate(model, state, batches).accuracy for state in (a, b))
    last = feature_connectivity(model, a, b, batches, lams)
    depth = max(layer.depth for layer in last)
    cosines = {layer.lam: layer.cosine.mean for layer in last if layer.depth == depth}
    return tuple(
        ErrorBound(lam, 1 - evaluate(model, interpolate(a, b, lam), batches).accuracy, bound, cosines[lam])
        for lam in lams
    )
