"""Activations of two models side by side: weak additivity, second moments of the inputs, overlap of active units."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedrebasin.analysis.features import record_activations
from fedrebasin.analysis.streams import Spread, cosine, normalised_distance, ratio, spread_of, spread_sums, sums_over
from fedrebasin.running import Batch
from fedrebasin.state import State


@dataclass(frozen=True)
class Additivity:
    """How additive one activation function is between two models' inputs to it.

    Args:
        activation: ``activation1``, ... in order of execution.
        lam: the position.
        cosine: of ``s((1 - lam) x_A + lam x_B)`` and ``(1 - lam) s(x_A) + lam s(x_B)``, over the examples.
        distance: ``|left - right|^2 / (|left| |right|)`` over the whole data set.
    """

    activation: str
    lam: float
    cosine: Spread
    distance: float


def weak_additivity(
    model: nn.Module, a: State, b: State, batches: Iterable[Batch], lam: float = 0.5
) -> tuple[Additivity, ...]:
    """Weak additivity of the activation functions (LLFC, section 4.2; LEWC, section 5.1), streamed.

    Identities: 1 and 0 for a model with itself, for units whose inputs have the same sign in both models, and for
    units that are never active in one model where the other one's input is zero.

    Args:
        model: the module; it stays as it is.
        a: state dict of A.
        b: state dict of B.
        batches: inputs, with or without labels; read once.
        lam: position.

    Raises:
        CalibrationError: if there is no data, or no activation function is called.
    """

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        of_a, of_b = (record_activations(model, state, batch) for state in (a, b))
        found = {}
        for name, (function, x_a, _) in of_a.items():
            x_b = of_b[name].inputs
            # in place on a tensor made here, should the function be an in-place one
            left = function((1 - lam) * x_a + lam * x_b)
            right = (1 - lam) * function(x_a.clone()) + lam * function(x_b.clone())
            squares = torch.stack([term.square().sum() for term in (left - right, left, right)])
            found[name] = torch.cat([spread_sums(cosine(left, right)), squares]).cpu()
        return found

    return tuple(
        Additivity(name, lam, spread_of(total[:3].tolist()), normalised_distance(*total[3:].tolist()))
        for name, total in sums_over(model, batches, of_batch).items()
    )


@dataclass(frozen=True, eq=False)
class UnitActivity:
    """What one activation function's units do over a data set, positions of images and sequences counted one by one.

    Args:
        activation: ``activation1``, ... in order of execution.
        second_moment: mean of the squared input, by unit, float64 (LEWC, Figures 5 and 6).
        active: the share of examples with a positive input, by unit.
    """

    activation: str
    second_moment: Tensor
    active: Tensor


def unit_activity(model: nn.Module, state: State, batches: Iterable[Batch]) -> tuple[UnitActivity, ...]:
    """Second moments of the activation functions' inputs, and how often each unit is active (LEWC, section 5.1).

    Args:
        model: the module.
        state: its state dict.
        batches: inputs, with or without labels; read once.

    Raises:
        CalibrationError: if there is no data, or no activation function is called.
    """

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        rows = {name: found.by_unit for name, found in record_activations(model, state, batch).items()}
        return {
            name: torch.stack([each.square().sum(0), (each > 0).double().sum(0), torch.ones_like(each).sum(0)])
            for name, each in rows.items()
        }

    total = sums_over(model, batches, of_batch)
    return tuple(UnitActivity(name, squares / count, on / count) for name, (squares, on, count) in total.items())


@dataclass(frozen=True)
class Overlap:
    """How much the same units work in two models.

    Args:
        activation: ``activation1``, ... in order of execution.
        jaccard: units active in both models over units active in either, over all examples; in [0, 1]. Two models
            whose units are independently active half of the time have 1 / 3.
        moments: the cosine of the two vectors of second moments of the inputs that are positive; 0 where no unit is
            active in both models.
    """

    activation: str
    jaccard: float
    moments: float


def active_overlap(model: nn.Module, a: State, b: State, batches: Iterable[Batch]) -> tuple[Overlap, ...]:
    """Overlap of the active units of two models (LEWC, section 5.1, Figures 5, 6, 21, 22), streamed.

    Identities: 1 for a model with itself; 0 for models whose active units are disjoint.

    Args:
        model: the module.
        a: state dict of A.
        b: state dict of B.
        batches: inputs, with or without labels; read once.

    Raises:
        CalibrationError: if there is no data, or no activation function is called.
    """

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        of_a, of_b = (record_activations(model, state, batch) for state in (a, b))
        found = {}
        for name in of_a:
            x, y = (of[name].by_unit.clamp_min(0) for of in (of_a, of_b))
            both, either = (x > 0) & (y > 0), (x > 0) | (y > 0)
            found[name] = torch.stack([each.double().sum(0) for each in (both, either, x.square(), y.square())])
        return found

    return tuple(
        Overlap(name, ratio(*total[:2].sum(1).tolist()), float(cosine(total[2:3], total[3:])))
        for name, total in sums_over(model, batches, of_batch).items()
    )
