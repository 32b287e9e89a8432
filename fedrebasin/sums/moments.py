"""Means and variances by channel, from sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.errors import CalibrationError


@dataclass(frozen=True)
class Moments:
    """Mean and (population) variance by channel, over ``count`` values, float64."""

    count: float
    mean: Tensor
    variance: Tensor


def moments(count: Tensor, total: Tensor, squares: Tensor) -> Moments:
    """Moments from a number of values, their sum and the sum of their squares."""
    number = float(count)
    mean = total / number
    return Moments(number, mean, (squares / number - mean.square()).clamp(min=0))


def check_moments(count: Tensor, total: Tensor, squares: Tensor, where: str) -> None:
    """Refuse sums that no values have.

    Raises:
        CalibrationError: if there are no values, or the variance is negative by more than rounding.
    """
    number = float(count)
    if number < 1:
        raise CalibrationError(f"{where}: sums over {number:g} values")
    if bool((squares < 0).any()) or bool((total.square() / number > squares * (1 + 1e-9) + 1e-300).any()):
        raise CalibrationError(f"{where}: negative variance")


def correction(current: Moments, target: Moments, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Factor and shift that turn the current moments into the target's; a unit that never varies is only shifted.

    Without a bias there is nothing that a shift could be folded into: only the spread is restored.
    """
    spread = current.variance.sqrt()
    tiny = 1e-7 * current.mean.abs() + torch.finfo(torch.float32).tiny
    wanted = target.variance.to(spread.device).sqrt()
    scale = torch.where(spread > tiny, wanted / spread.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    shift = target.mean.to(spread.device) - scale * current.mean
    return scale, shift if has_bias else torch.zeros_like(shift)
