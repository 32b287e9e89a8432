"""Inverse temperature: the factor on the logits that minimises the negative log-likelihood (LEWC, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.affine import bias_of
from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State, demand_classes, logits_and_labels
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import computable, demand_numbers
from fedrebasin.sums import Sums, demand, demand_data

MODEL_OUTPUT = "model output"  # the tracer's reason for leaving an axis where it is

#: How far ``beta * spread of the logits`` may lie from 1: nets that err nowhere have no finite optimum.
_REACH = 1e3


@dataclass(frozen=True)
class Temperature:
    """A fitted inverse temperature.

    Args:
        beta: the factor on the logits (LEWC Figure 19 plots 1 / beta).
        nll_before: mean negative log-likelihood at beta = 1, in nats.
        nll_after: the same at ``beta``.
    """

    beta: float
    nll_before: float
    nll_after: float


def check_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels in int64 on their device, once it is sure that they can be used.

    Raises:
        CalibrationError: if they are empty, do not fit each other, are not finite, or a label is no class.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise CalibrationError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} "
            "must be (n, classes) and (n,)"
        )
    if logits.numel() == 0:
        raise CalibrationError("there are no logits to calibrate on")
    logits = logits.detach().double()
    labels = labels.detach().to(logits.device, torch.int64)
    if not bool(torch.isfinite(logits).all()):
        raise CalibrationError("the logits are not finite")
    demand_classes(labels, logits.shape[1])
    return logits, labels


def loss_terms(logits: Tensor, labels: Tensor, betas: Tensor) -> Tensor:
    """Sums over examples of the NLL of ``beta * logits`` and its first two derivatives in beta.

    Args:
        logits: float64, shape ``(n, classes)``.
        labels: int64, shape ``(n,)``.
        betas: float64, shape ``(points,)``.

    Returns:
        float64, shape ``(3, points)``.
    """
    centred = logits - logits.gather(1, labels[:, None])
    rows = []
    for beta in betas:
        scaled = beta * centred
        probabilities = torch.softmax(scaled, 1)
        mean = (probabilities * centred).sum(1)
        square = (probabilities * centred.square()).sum(1)
        rows.append(torch.stack([torch.logsumexp(scaled, 1).sum(), mean.sum(), (square - mean.square()).sum()]))
    return torch.stack(rows, 1)


def minimise(derivatives: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """The point in ``[low, high]``, both positive, where an increasing function is zero; an end if it is zero nowhere.

    Newton's steps, replaced by bisection in the logarithm where they leave the bracket or do not halve the step.

    Args:
        derivatives: the function and its derivative.
        low: left end.
        high: right end.
    """
    if derivatives(low)[0] >= 0:
        return low
    if derivatives(high)[0] <= 0:
        return high
    point = min(max(1.0, low), high)
    last_step = math.inf
    for _ in range(200):
        value, slope = derivatives(point)
        if value == 0:
            return point
        low, high = (point, high) if value < 0 else (low, point)
        step = -value / slope if slope > 0 else math.inf
        if not (low < point + step < high) or abs(step) > last_step / 2:
            step = math.sqrt(low * high) - point
        last_step = abs(step)
        point += step
        if abs(step) <= 1e-12 * point:
            break
    return point


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The inverse temperature that minimises the mean NLL of ``beta * logits`` (LEWC, section 3.1).

    The NLL is convex in beta; a safeguarded Newton iteration in float64 finds the optimum. Fit it on a calibration
    part, never on what is reported. Where the best beta is infinite (no example is misclassified) or 0 (the logits say
    less than nothing), beta stops at 1000 or 1 / 1000 divided by the logits' spread.

    Identity: ``fit_temperature(c * logits, labels).beta == fit_temperature(logits, labels).beta / c`` for c > 0.

    Args:
        logits: shape ``(n, classes)``.
        labels: shape ``(n,)``, in 0 .. classes - 1.

    Raises:
        CalibrationError: if they are empty, do not fit each other, are not finite, or a label is no class.
    """
    logits, labels = check_logits(logits, labels)
    examples = len(labels)

    def at(beta: float) -> list[float]:
        terms = loss_terms(logits, labels, torch.tensor([beta], dtype=torch.float64, device=logits.device))
        return [float(term) / examples for term in terms[:, 0]]

    spread = math.sqrt(float(logits.var(1, correction=0).mean()))
    before = at(1.0)[0]
    if spread == 0:
        return Temperature(1.0, before, before)

    def derivatives(beta: float) -> tuple[float, float]:
        _, first, second = at(beta)
        return first, second

    beta = minimise(derivatives, 1 / (_REACH * spread), _REACH / spread)
    return Temperature(beta, before, at(beta)[0])


def _grid() -> tuple[float, ...]:
    return tuple(2.0 ** (exponent / 4) for exponent in range(-32, 49))


@dataclass(frozen=True)
class TemperatureCurve:
    """The loss and its first two derivatives at given inverse temperatures: enough to find the best one in one round.

    Payload: ``terms``, shape ``(3, points)``, sums over labels; ``labels``; ``before``, the loss at beta = 1.

    Args:
        betas: ascending; by default 81 points from 1 / 256 to 4096, where the best beta of the interpolated curve is
            within 1e-4 of the true one. A second round on a finer grid around it is exact to rounding.
    """

    betas: tuple[float, ...] = _grid()
    name: ClassVar[str] = "temperature"
    batch_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.betas) < 2 or self.betas[0] <= 0 or sorted(set(self.betas)) != list(self.betas):
            raise CalibrationError(f"betas must be at least two, positive and ascending, not {self.betas}")

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """Loss, slope and curvature at each beta, summed over the labels of one batch."""
        logits, labels = check_logits(*logits_and_labels(model, state, batch))
        points = torch.tensor((1.0, *self.betas), dtype=torch.float64, device=logits.device)
        terms = loss_terms(logits, labels, points)
        count = torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device)
        return {"terms": terms[:, 1:], "before": terms[0, 0], "labels": count}

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: if the loss is negative, not convex, or not finite.
        """
        demand(sums, {"terms": (3, len(self.betas)), "before": (), "labels": ()}, self.name)
        loss, slope, curvature = sums["terms"].double()
        labels = float(sums["labels"])
        slack = 1e-9 * (float(slope.abs().max()) + labels)
        if labels < 1 or float(sums["before"]) < 0 or bool((loss < 0).any()) or bool((curvature < -slack).any()):
            raise CalibrationError(f"{self.name}: a negative loss or curvature, or no labels")
        if bool((slope.diff() < -slack).any()):
            raise CalibrationError(f"{self.name}: the loss is not convex in beta")

    def finish(self, sums: Sums) -> Temperature:
        """The best inverse temperature; an end of the grid where the slope has one sign on all of it.

        Between two points the loss is taken as the polynomial of degree 5 in log beta that has its value, slope and
        curvature at both.
        """
        demand_data(sums, self.name)
        loss, slope, curvature = (row / float(sums["labels"]) for row in sums["terms"].double().cpu())
        before = float(sums["before"]) / float(sums["labels"])
        right = int((slope < 0).sum())  # the slope increases: the first point where it is not negative
        if right in (0, len(self.betas)):
            end = 0 if right == 0 else right - 1
            return Temperature(self.betas[end], before, float(loss[end]))
        ends = [
            (float(loss[i]), beta * float(slope[i]), beta * float(slope[i]) + beta**2 * float(curvature[i]))
            for i, beta in ((right - 1, self.betas[right - 1]), (right, self.betas[right]))
        ]
        width = math.log(self.betas[right] / self.betas[right - 1])
        position, value = _quintic_minimum(ends, width)
        return Temperature(self.betas[right - 1] * math.exp(position * width), before, value)


def _quintic_minimum(ends: list[tuple[float, float, float]], width: float) -> tuple[float, float]:
    """Where in [0, 1] the quintic with these values, slopes and curvatures at its ends is least, and that value."""
    (f0, d0, s0), (f1, d1, s1) = ends
    d0, d1, s0, s1 = d0 * width, d1 * width, s0 * width**2, s1 * width**2
    rise, bend = f1 - f0 - d0 - s0 / 2, d1 - d0 - s0
    powers = (
        f0,
        d0,
        s0 / 2,
        10 * rise - 4 * bend + (s1 - s0) / 2,
        -15 * rise + 7 * bend - (s1 - s0),
        6 * rise - 3 * bend + (s1 - s0) / 2,
    )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        slope = sum(n * powers[n] * middle ** (n - 1) for n in range(1, 6))
        low, high = (middle, high) if slope < 0 else (low, middle)
    middle = (low + high) / 2
    return middle, sum(power * middle**n for n, power in enumerate(powers))


def fold_temperature(state: State, beta: float, head: str | PermutationSpec) -> dict[str, Tensor]:
    """The model whose logits are ``beta`` times those of ``state``: its last layer is scaled.

    Args:
        state: the state dict.
        beta: positive.
        head: key of the last layer's weight (see ``head_weight``), or a permutation spec, which knows it.

    Raises:
        CalibrationError: if beta is not positive and finite, there is no such weight, or the spec names no single one.
    """
    demand_numbers(state, CalibrationError)
    if isinstance(head, PermutationSpec):
        head = _head_in(head)
    if not 0 < beta < math.inf or head not in state:
        raise CalibrationError(f"beta {beta} must be positive and finite, and {head!r} a key of the state dict")
    scaled = [key for key in (head, bias_of(head, state)) if key is not None]
    folded = {key: (computable(state[key]) * beta).to(state[key].dtype) for key in scaled}
    return {**state, **folded}


def _head_in(spec: PermutationSpec) -> str:
    """The weight whose rows are the model's outputs; in a hand-written spec, the one whose rows no group moves."""
    moved = {(axis.key, axis.dim) for group in spec.groups.values() for axis in group.axes}
    rows = (
        {row.key for row in spec.unpermuted if row.reason == MODEL_OUTPUT and row.dim == 0}
        if spec.unpermuted
        else {key for key in spec.shapes if (key, 0) not in moved}
    )
    weights = sorted(key for key in rows if len(spec.shapes[key]) > 1)
    if len(weights) != 1 or rows - {weights[0], bias_of(weights[0], dict.fromkeys(rows, torch.empty(0)))}:
        found = ", ".join(sorted(rows)) or "nothing"
        raise CalibrationError(f"the spec names no single last layer ({found}): give the key of its weight")
    return weights[0]
