"""The loss at many inverse temperatures at once, and the best one (LEWC, section 3.1)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_classes, logits_and_labels
from fedrebasin.state import State
from fedrebasin.sums.algebra import Sums, demand, demand_data, demand_rows


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
            CalibrationError: if the loss is negative, not convex, or not finite, if its slopes are those of another
                curve, or it has more labels than the examples can have.
        """
        demand(sums, {"terms": (3, len(self.betas)), "before": (), "labels": ()}, self.name)
        loss, slope, curvature = sums["terms"].double()
        labels = float(sums["labels"])
        slack = 1e-9 * (float(slope.abs().max()) + labels)
        if labels < 1 or float(sums["before"]) < 0 or bool((loss < 0).any()) or bool((curvature < -slack).any()):
            raise CalibrationError(f"{self.name}: a negative loss or curvature, or no labels")
        if bool((slope.diff() < -slack).any()):
            raise CalibrationError(f"{self.name}: the loss is not convex in beta")
        demand_rows(sums, sums["labels"], self.name)
        # A convex curve rises by no less than the slope at a step's start says, and by no more than that at its end.
        steps = torch.tensor(self.betas, dtype=torch.float64, device=loss.device).diff()
        rises, slack = loss.diff(), 1e-6 * (loss[1:].abs() + loss[:-1].abs() + labels)
        if bool((rises < slope[:-1] * steps - slack).any() or (rises > slope[1:] * steps + slack).any()):
            raise CalibrationError(f"{self.name}: the losses do not fit their slopes")

    def sizes(self, sums: Sums) -> dict[str, float]:
        """The number of labels, and the steepest slope of the loss: how large the logits are."""
        return {"labels": float(sums["labels"]), "slope": float(sums["terms"][1].abs().max())}

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
