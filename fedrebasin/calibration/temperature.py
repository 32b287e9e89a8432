"""Inverse temperature: the factor on the logits that minimises the negative log-likelihood (LEWC, section 3.1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedrebasin.errors import CalibrationError
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, computable, demand_numbers
from fedrebasin.sums import Temperature, check_logits, loss_terms
from fedrebasin.watching import bias_of

MODEL_OUTPUT = "model output"  # the tracer's reason for leaving an axis where it is

#: How far ``beta * spread of the logits`` may lie from 1: nets that err nowhere have no finite optimum.
_REACH = 1e3


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
