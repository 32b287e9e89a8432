"""Means and variances by channel, from sums."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.errors import CalibrationError
from fedrebasin.sums.algebra import Sums, demand, demand_rows

_PARTS = ("count", "sum", "squares")


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


def moment_sums(name: str, channels: Tensor) -> dict[str, Tensor]:
    """``NAME.count``, ``NAME.sum`` and ``NAME.squares`` of values of shape ``(channels, n)``, float64."""
    count = torch.tensor(float(channels.shape[1]), dtype=torch.float64, device=channels.device)
    return {f"{name}.count": count, f"{name}.sum": channels.sum(1), f"{name}.squares": channels.square().sum(1)}


def demand_moments(sums: Sums, names: Collection[str], statistic: str) -> None:
    """Refuse sums of moments that no values have.

    Raises:
        CalibrationError: if an entry is missing, misshapen or not finite, there are no values or more than the examples
            can have, or a variance is negative by more than rounding.
    """
    demand(sums, {f"{name}.{part}": None for name in names for part in _PARTS}, statistic)
    for name in names:
        count, total, squares = (sums[f"{name}.{part}"] for part in _PARTS)
        if count.dim() != 0 or total.dim() != 1 or total.shape != squares.shape:
            raise CalibrationError(f"{statistic}: {name} has sums of wrong shapes")
        number = float(count)
        if number < 1:
            raise CalibrationError(f"{statistic}: {name}: sums over {number:g} values")
        demand_rows(sums, count, f"{statistic}: {name}")
        if bool((squares < 0).any()) or bool((total.square() / number > squares * (1 + 1e-9) + 1e-300).any()):
            raise CalibrationError(f"{statistic}: {name}: negative variance")


def moment_sizes(sums: Sums) -> dict[str, float]:
    """The number of values of each name, and the sum of their squares over its channels."""
    return {key: float(tensor.sum()) for key, tensor in sums.items() if key.endswith((".count", ".squares"))}


def moments_by_name(sums: Sums, names: Iterable[str]) -> dict[str, Moments]:
    """The moments from the sums of :func:`moment_sums`."""
    return {name: moments(*(sums[f"{name}.{part}"] for part in _PARTS)) for name in names}


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
