"""Inverse temperature: the factor on the logits that minimises the negative log-likelihood (LEWC, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.errors import CalibrationError

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
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise CalibrationError(
            f"labels lie in {int(labels.min())} .. {int(labels.max())} where there are {logits.shape[1]} classes"
        )
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
