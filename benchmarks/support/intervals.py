"""Intervals that hold the true value 95 times of 100: Wilson's for shares, Student's for means."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev

from scipy.stats import t as student

LEVEL = 0.95


def wilson(found: int, tried: int, level: float = LEVEL) -> tuple[float, float]:
    """Of a share (Wilson, 1927): it has a width where all or none were found, too."""
    if not tried:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, middle = found / tried, 1 + z * z / tried
    half = z * sqrt(share * (1 - share) / tried + (z / (2 * tried)) ** 2)
    return max((share + z * z / (2 * tried) - half) / middle, 0.0), min(
        (share + z * z / (2 * tried) + half) / middle, 1.0
    )


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Of a mean, by Student's t: boundless where there are fewer than two values."""
    if len(values) < 2:
        return float("-inf"), float("inf")
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
