"""What the sums for each calibrator come to, and how badly that suits another client's: one judge a calibrator."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec, ridge_head
from fedrebasin.calibration import regressed_layer
from fedrebasin.matching import match_relations
from fedrebasin.merging import cosine
from fedrebasin.state import State
from fedrebasin.sums import EXAMPLES, ActivationCorrelation, Moments, Statistic, Sums, TemperatureCurve
from fedrebasin.watching import affine_matrix

from .agreement import LeaveOneOut, Terms

_TINY = torch.finfo(torch.float64).tiny
_AGREES = 0.05  # a cosine that is larger than by chance
_DEAD = 1e-3  # of a layer's mean variance: a channel with less is as good as constant


@dataclass(frozen=True)
class FitsMoments(LeaveOneOut[dict[str, Moments]]):
    """Means and variances: the negative log-likelihood that they give a client's values, were these normal.

    In nats, the mean over the channels of all layers.
    """

    statistic: Statistic[dict[str, Moments]]

    def solve(self, total: Sums) -> dict[str, Moments]:
        """The moments by layer."""
        return self.statistic.finish(total)

    def loss(self, solution: dict[str, Moments], terms: Sums) -> float:
        """Half the mean of ``log v + (own v + (own m - m)^2) / v``."""
        return moments_loss(solution, self.statistic.finish(terms))


def moments_loss(expected: Mapping[str, Moments], own: Mapping[str, Moments]) -> float:
    """What :class:`FitsMoments` judges by."""
    found, channels = 0.0, 0
    for name, values in own.items():
        wanted = expected[name]
        scale = wanted.variance.mean() + wanted.mean.square().mean()
        variance = wanted.variance + _DEAD * scale + _TINY
        squares = values.variance + _DEAD * scale + (values.mean - wanted.mean).square()
        found += float((variance.log() + squares / variance).sum()) / 2
        channels += len(values.mean)
    return found / max(channels, 1)


@dataclass(frozen=True)
class FitsTargets(LeaveOneOut[dict[str, Moments]]):
    """The targets of REPAIR, to which clients contribute by their examples: judged as :class:`FitsMoments`."""

    statistic: Statistic[dict[str, Moments]]

    def terms(self, position: int, sums: Sums) -> Sums:
        """Means and spreads, times the client's examples, and the sums."""
        found, share = dict(sums), sums[EXAMPLES]
        for name, own in self.statistic.finish(sums).items():
            found |= {name + "/mean": share * own.mean, name + "/spread": share * own.variance.sqrt()}
        return found

    def solve(self, total: Sums) -> dict[str, Moments]:
        """The targets."""
        share = total[EXAMPLES]
        names = [key.removesuffix("/mean") for key in total if key.endswith("/mean")]
        return {
            name: Moments(1.0, total[name + "/mean"] / share, (total[name + "/spread"] / share).square())
            for name in names
        }

    def loss(self, solution: dict[str, Moments], terms: Sums) -> float:
        """As of moments."""
        return moments_loss(solution, self.statistic.finish(terms))


@dataclass(frozen=True)
class FitsTemperature(LeaveOneOut[float]):
    """The best inverse temperature: the loss that it costs a client, relative to what guessing costs."""

    statistic: TemperatureCurve

    def solve(self, total: Sums) -> float:
        """The best inverse temperature."""
        return self.statistic.finish(total).beta

    def loss(self, solution: float, terms: Sums) -> float:
        """The loss at that temperature over the one at the smallest; between two points in proportion to log beta."""
        losses = terms["terms"][0].double().tolist()
        at = math.log(min(max(solution, self.statistic.betas[0]), self.statistic.betas[-1]))
        for (left, right), (low, high) in zip(pairwise(losses), pairwise(self.statistic.betas), strict=True):
            if at <= math.log(high):
                share = (at - math.log(low)) / math.log(high / low)
                return float((left + share * (right - left)) / max(losses[0], _TINY))
        return float(losses[-1] / max(losses[0], _TINY))


@dataclass(frozen=True)
class FitsHead(LeaveOneOut[Tensor]):
    """The last layer: its squared error on a client's examples, whose classes have length 1."""

    state: State
    head: str
    ridge: float | None

    def solve(self, total: Sums) -> Tensor:
        """The layer's matrix, shape ``(1, classes, features)``."""
        return affine_matrix(ridge_head(self.state, self.head, [total], self.ridge).state, self.head)

    def loss(self, solution: Tensor, terms: Sums) -> float:
        """The mean squared error."""
        size = solution.shape[-1]  # without a bias the appended 1 is no feature
        gram, classes = terms["gram"][None, :size, :size], terms["classes"][None, :size]
        return unexplained(solution, gram, classes, float(terms["classes"][-1].sum()))


@dataclass(frozen=True)
class FitsLayer(LeaveOneOut[Tensor]):
    """One layer: the squared error on a client's pre-activations, relative to what its own solution explains."""

    state: State
    weight: str
    ridge: float

    def terms(self, position: int, sums: Sums) -> Sums:
        """The sums, and what the client's own solution explains."""
        own = self.solve(sums)
        explained = (own.mT * sums["cross"]).sum() * 2 - (own @ sums["gram"] * own).sum()
        return {**sums, "explained": explained}

    def solve(self, total: Sums) -> Tensor:
        """The layer's matrix, shape ``(blocks, rows, features)``."""
        return affine_matrix(
            regressed_layer(self.state, self.weight, total, self.ridge), self.weight, len(total["gram"])
        )

    def loss(self, solution: Tensor, terms: Sums) -> float:
        """0 for the client's own solution, 1 for nothing."""
        return unexplained(solution, terms["gram"], terms["cross"], float(terms["explained"]))


@dataclass(frozen=True)
class FitsOrder:
    """A client's own order of units: how much less its model agrees with the reference than before.

    The cosine that is lost, relative to half of what a random order would lose: honest clients lose a fifth of that,
    and nearly as much as each other.

    Nobody's correlations have a say in another's order.

    Args:
        spec: of the models.
        states: the clients' models, aligned.
        reference: what they are aligned to.
        statistic: of the sums.
    """

    spec: PermutationSpec
    states: Sequence[State]
    reference: State
    statistic: ActivationCorrelation

    def terms(self, position: int, sums: Sums) -> Sums:
        """What is lost."""
        state = self.states[position]
        step = match_relations(self.spec, self.statistic.finish(sums))
        chance = Permutation.random(self.spec, torch.Generator().manual_seed(position))
        before, after, by_chance = (
            cosine(self.spec, self.reference, each) for each in (state, step.apply(state), chance.apply(state))
        )
        return {"lost": torch.tensor(2 * (before - after) / max(before - by_chance, _AGREES), dtype=torch.float64)}

    def contradictions(self, terms: Terms) -> dict[int, float]:
        """What each has lost."""
        return {client: float(own["lost"]) for client, own in terms.items()}


def unexplained(matrix: Tensor, gram: Tensor, cross: Tensor, squares: float) -> float:
    """The squared error of a linear map on the data behind sums, relative to the squared size of what it aims at.

    Args:
        matrix: shape ``(blocks, rows, features)``.
        gram: sum of ``x x^T``, shape ``(blocks, features, features)``.
        cross: sum of ``x y^T``, shape ``(blocks, features, rows)``.
        squares: sum of ``y^2``.
    """
    error = squares - 2 * float((matrix.mT * cross).sum()) + float((matrix @ gram * matrix).sum())
    return error / max(squares, _TINY)
