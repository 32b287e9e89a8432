"""Loss barriers: how much worse the models between two models are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedrebasin.calibration import fit_temperature, recalibrate_batch_norm
from fedrebasin.errors import MergeError
from fedrebasin.running import Batch, demand_reiterable
from fedrebasin.state import (
    State,
    computable,
    cosine,
    demand_numbers,
    demand_same_form,
    has_mean,
    is_statistic,
    length,
)
from fedrebasin.sums import evaluate, logits_of

Definition = Literal["git-re-basin", "simultaneous"]
Interpolation = Literal["linear", "spherical"]
#: Which curve a barrier is of: mean NLL in nats, or ``1 - accuracy``.
Quantity = Literal["loss", "error"]


@dataclass(frozen=True)
class Barrier:
    """The loss and the error along a path.

    Args:
        lams: positions; 0 is A, 1 is B.
        losses: mean NLL at each, in nats.
        accuracies: in [0, 1].
        value: the barrier of the losses.
        betas: inverse temperature at each; 1 where none was fitted.
    """

    lams: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    value: float
    betas: tuple[float, ...] = ()

    @property
    def errors(self) -> tuple[float, ...]:
        """``1 - accuracy`` at each position, in [0, 1]."""
        return tuple(1 - accuracy for accuracy in self.accuracies)

    def error_barrier(self, definition: Definition = "git-re-basin") -> float:
        """The barrier of the errors, in [-1, 1] (Frankle et al. 2020, section 2; see :func:`barrier_value`)."""
        return barrier_value(self.errors, definition)


def demand_alike(a: State, b: State) -> None:
    """Refuse two models that are not of one architecture.

    Raises:
        MergeError: if keys or shapes differ, or an entry has no numbers.
    """
    for state in (a, b):
        demand_numbers(state)
    demand_same_form(a, b)


def interpolate(a: State, b: State, lam: float, interpolation: Interpolation = "linear") -> dict[str, Tensor]:
    """The state at ``lam`` on the path from ``a`` (0) to ``b`` (1); integer tensors are A's.

    Args:
        a: state dict.
        b: state dict with the same keys and shapes.
        lam: in [0, 1].
        interpolation: "linear": ``(1 - lam) a + lam b``. "spherical" takes all floating-point tensors as one vector
            and moves along the arc, ``(sin((1 - lam) t) a + sin(lam t) b) / sin t`` with t their angle, so that models
            of one length meet only models of that length; running statistics are interpolated linearly all the same.

    Raises:
        MergeError: if keys or shapes differ, or the interpolation is unknown.
    """
    demand_alike(a, b)
    if interpolation not in ("linear", "spherical"):
        raise MergeError(f"interpolation {interpolation!r} is neither 'linear' nor 'spherical'")
    keys = {key for key, tensor in a.items() if has_mean(tensor) and not is_statistic(key)}
    line = arc = (1 - lam, lam)
    if interpolation == "spherical":
        angle = math.acos(cosine(a, b, keys))
        if math.sin(angle) > 1e-6 and length(a, keys) > 0 < length(b, keys):
            arc = (math.sin((1 - lam) * angle) / math.sin(angle), math.sin(lam * angle) / math.sin(angle))
    result = {}
    for key, tensor in a.items():
        shares = arc if key in keys else line
        if has_mean(tensor):
            x, y = computable(tensor), computable(b[key].to(tensor))
            result[key] = (shares[0] * x + shares[1] * y).to(tensor.dtype)
        else:
            result[key] = tensor
    return result


def barrier_value(losses: Iterable[float], definition: Definition = "git-re-basin") -> float:
    """The barrier of losses (or errors) at evenly spaced positions from A to B.

    Args:
        losses: at least two.
        definition: "git-re-basin" is max L(lam) - (L(A) + L(B)) / 2 (Git Re-Basin, Definition 2.2), "simultaneous" is
            max [L(lam) - (1 - lam) L(A) - lam L(B)] (Simultaneous connectivity, Eq. 1). They agree where
            L(A) = L(B); the second one is 0 for a straight line.

    Raises:
        MergeError: if the definition is unknown or there are fewer than two losses.
    """
    curve = torch.tensor(list(losses), dtype=torch.float64)
    if len(curve) < 2:
        raise MergeError("a barrier needs at least the losses of both ends")
    lams = torch.linspace(0, 1, len(curve), dtype=torch.float64)
    if definition == "git-re-basin":
        return float((curve - (curve[0] + curve[-1]) / 2).max())
    if definition == "simultaneous":
        return float((curve - torch.lerp(curve[0], curve[-1], lams)).max())
    raise MergeError(f"definition {definition!r} is neither 'git-re-basin' nor 'simultaneous'")


def loss_barrier(
    model: nn.Module,
    a: State,
    b: State,
    batches: Iterable[Batch],
    points: int = 25,
    definition: Definition = "git-re-basin",
    *,
    interpolation: Interpolation = "linear",
    recalibrate: Iterable[Batch] | None = None,
    calibrate: Iterable[Batch] | None = None,
) -> Barrier:
    """The loss barrier between two models; no module is copied, and one point's state dict is in memory at a time.

    Identities: the barrier between a model and itself is 0; the curve of (B, A) is that of (A, B) reversed. The barrier
    of the errors is that of the same curve: ``loss_barrier(...).error_barrier()``.

    Args:
        model: the module; neither its parameters nor its mode change.
        a: state dict at lam = 0.
        b: state dict at lam = 1.
        batches: ``(inputs, labels)`` to evaluate on, read once for each point.
        points: number of evenly spaced positions, both ends included.
        definition: see :func:`barrier_value`.
        interpolation: "linear", or "spherical" for the arc.
        recalibrate: batches that BatchNorm's running statistics are taken from anew at each point (Git Re-Basin A.4).
        calibrate: ``(inputs, labels)`` that an inverse temperature is fitted on at each point: the calibrated loss
            (LEWC, section 3.1). Their logits are held together, one point's at a time.

    Raises:
        MergeError: if the models differ in keys or shapes, or an argument is out of its range.
        CalibrationError: if batches can be read only once, or do not fit the model.
    """
    if points < 2:
        raise MergeError(f"{points} points: a path has at least its two ends")
    barrier_value((0.0, 0.0), definition)  # refuses an unknown one before anything is evaluated
    for iterable in (batches, recalibrate, calibrate):
        if iterable is not None:
            demand_reiterable(iterable, "a barrier")
    lams = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    losses, accuracies, betas = [], [], []
    for lam in lams:
        state = interpolate(a, b, lam, interpolation)
        if recalibrate is not None:
            state = recalibrate_batch_norm(model, state, recalibrate)
        beta = 1.0 if calibrate is None else fit_temperature(*logits_of(model, state, calibrate)).beta
        score = evaluate(model, state, batches, beta)
        losses.append(score.loss)
        accuracies.append(score.accuracy)
        betas.append(beta)
    return Barrier(tuple(lams), tuple(losses), tuple(accuracies), barrier_value(losses, definition), tuple(betas))
