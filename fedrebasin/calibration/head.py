"""The last layer in closed form: ridge regression on the merged model's features, from sums (Fed3R, Fani 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.state import State
from fedrebasin.sums import Sums
from fedrebasin.watching import bias_of, with_affine_matrix

_RIDGES = tuple(10.0 ** (exponent / 4) for exponent in range(-36, 9))  # relative to the features' mean variance


@dataclass(frozen=True)
class RidgeHead:
    """A fitted last layer.

    Args:
        state: the model with it.
        ridge: what was added to the Gram matrix's diagonal, relative to the mean variance of a feature.
        scores: estimated mean squared error on unseen data, by ridge tried.
    """

    state: dict[str, Tensor]
    ridge: float
    scores: dict[float, float]


class _Regression:
    """Ridge regression of class indicators on features for every ridge at once, the intercept not penalised."""

    def __init__(self, gram: Tensor, classes: Tensor) -> None:
        self.examples = float(gram[-1, -1])
        self.mean = gram[:-1, -1] / self.examples
        self.shares = classes[-1] / self.examples
        centred = gram[:-1, :-1] - self.examples * torch.outer(self.mean, self.mean)
        cross = classes[:-1] - self.examples * torch.outer(self.mean, self.shares)
        self.scale = float(centred.diagonal().mean())
        values, self.vectors = torch.linalg.eigh((centred + centred.T) / 2)
        self.values = values.clamp(min=0)
        self.rotated = self.vectors.T @ cross
        # Indicators: the sum of their squares is their sum.
        self.total = float((classes[-1] - self.examples * self.shares.square()).sum())

    def damped(self, ridge: float) -> Tensor:
        damped: Tensor = (self.values + ridge * self.scale).clamp(min=torch.finfo(torch.float64).tiny)
        return damped

    def weights(self, ridge: float) -> Tensor:
        """Shape ``(features + 1, classes)``, the intercept last."""
        inner = self.vectors @ (self.rotated / self.damped(ridge)[:, None])
        return torch.cat([inner, (self.shares - self.mean @ inner)[None]])

    def cross_validation(self, ridge: float) -> float:
        """Generalised cross-validation (Golub, Heath & Wahba 1979): the rotation-invariant leave-one-out error."""
        damped = self.damped(ridge)
        fitted = (self.rotated.square() * ((2 * damped - self.values) / damped.square())[:, None]).sum()
        freedom = 1 + float((self.values / damped).sum())
        if freedom >= self.examples:
            return math.inf
        residual = max(self.total - float(fitted), 0.0)
        return residual / self.examples / (1 - freedom / self.examples) ** 2


def _squared_error(weights: Tensor, sums: Sums) -> float:
    """Total squared error of a linear map on the data behind these sums."""
    gram, classes = sums["gram"].double(), sums["classes"].double()
    return float(classes[-1].sum() - 2 * (weights * classes).sum() + (weights * (gram @ weights)).sum())


def ridge_head(
    state: State,
    head: str,
    clients: Sequence[Sums],
    ridge: float | None = None,
    selection: Literal["generalised", "leave-one-client-out"] = "generalised",
) -> RidgeHead:
    """The last layer by ridge regression of the class indicators on its features (Fed3R, Fani 2024), in float64.

    Its scores are no logits: fit a temperature afterwards.

    Identity: the result depends on the sum over clients alone, hence not on how the data are split (with
    ``selection="generalised"`` the ridge too).

    Args:
        state: the merged model, which the sums were taken on.
        head: key of the last layer's weight (see ``head_weight``).
        clients: the :class:`HeadSums` of each client; those without data (empty) do not count.
        ridge: added to the diagonal of the centred Gram matrix, relative to the mean of that diagonal; chosen among
            45 values from 1e-9 to 100 if None.
        selection: the score it is chosen by: generalised cross-validation, the closed form of leave-one-out that
            sums suffice for, or the error on each client of the head fitted on all others.

    Raises:
        MergeError: if there are no sums, they do not fit the layer, or an argument is out of its range.
    """
    clients = [sums for sums in clients if sums]
    if not clients:
        raise MergeError("a ridge head needs the sums of at least one client with data")
    if head not in state or state[head].dim() != 2:
        raise MergeError(f"{head!r} is not the weight of a linear layer of this model")
    size = (state[head].shape[1] + 1, len(state[head]))
    for sums in clients:
        if tuple(sums["classes"].shape) != size or tuple(sums["gram"].shape) != (size[0], size[0]):
            raise MergeError(f"{head}: class sums of shape {tuple(sums['classes'].shape)} instead of {size}")
    if not all(bool(sums[part].isfinite().all()) for sums in clients for part in ("gram", "classes")):
        raise MergeError(f"{head}: the sums have values that are not finite")
    if ridge is not None and not 0 <= ridge < math.inf:
        raise MergeError(f"ridge {ridge} must not be negative")
    gram = torch.stack([sums["gram"].double() for sums in clients]).sum(0)
    classes = torch.stack([sums["classes"].double() for sums in clients]).sum(0)
    regression = _Regression(gram, classes)
    scores: dict[float, float] = {}
    if ridge is None:
        if selection == "generalised":
            scores = {each: regression.cross_validation(each) for each in _RIDGES}
        elif selection == "leave-one-client-out" and len(clients) > 1:
            scores = dict.fromkeys(_RIDGES, 0.0)
            for sums in clients:
                others = _Regression(gram - sums["gram"], classes - sums["classes"])
                for each in _RIDGES:
                    scores[each] += _squared_error(others.weights(each), sums) / regression.examples
        else:
            raise MergeError(
                f"selection {selection!r} of {len(clients)} clients: 'generalised', or 'leave-one-client-out' of two"
            )
        ridge = min(scores, key=lambda each: scores[each])
    weights = regression.weights(ridge)
    if bias_of(head, state) is None:
        # No intercept: the regression on features that are not centred.
        damping = ridge * regression.scale * torch.eye(size[0] - 1, dtype=torch.float64, device=gram.device)
        weights = torch.linalg.lstsq(gram[:-1, :-1] + damping, classes[:-1]).solution
    return RidgeHead({**state, **with_affine_matrix(state, head, weights.T)}, ridge, scores)
