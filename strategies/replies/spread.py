"""What is beyond the spread of most: numbers of one kind, one from each reply, and a stated rate of false alarms."""

from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

#: Differences below this are rounding, however alike the numbers are.
ROUNDING = 1e-6
#: The first quartile of the distances between normal numbers, in standard deviations.
_QUARTILE = 2**0.5 * NormalDist().inv_cdf(0.625)


def beyond(values: Tensor, rate: float, usual: Sequence[bool] | None = None, least: float = 0.0) -> Tensor:
    """How far each number lies above the median, 1 being as far as honest spread allows.

    The spread is the first quartile of the distances between the numbers (after Rousseeuw and Croux 1993): nearly half
    of them may be anything, and it needs no centre.

    Args:
        values: at least three numbers, shape (replies,).
        rate: how often one of so many normal numbers may lie beyond 1.
        usual: which of them say what is usual; None for all.
        least: so much above the median is allowed however alike the numbers are.

    Returns:
        shares of what is allowed, shape (replies,), negative below the median.
    """
    told = values if usual is None else values[torch.tensor(usual)]
    spread = max(_first_quartile(told) / _QUARTILE, ROUNDING)
    return (values - told.quantile(0.5)) / max(spread * allowed(len(told), rate), least)


@cache
def allowed(count: int, rate: float) -> float:
    """How many spreads the largest of so many normal numbers lies above their median, but at this rate.

    Of few numbers more than half lie close together by chance now and then, which makes the spread small: as often as
    Student's t says with half as many degrees of freedom. The factor was found by simulation: for 5 to 120 numbers and
    rates of 1e-5 to 0.01 the true rate is at most the stated one, and at least half of it for most.
    """
    from scipy.special import stdtrit  # late: it takes a while to import

    return float(stdtrit(max(count // 2, 3), 1 - rate / count)) * count / (count + 4)


def _first_quartile(values: Tensor) -> float:
    first, second = torch.triu_indices(len(values), len(values), 1)
    apart = (values[first] - values[second]).abs().sort().values
    place = (len(apart) - 1) / 4
    low, high = apart[int(place)], apart[min(int(place) + 1, len(apart) - 1)]
    return float(low + (high - low) * (place - int(place)))
