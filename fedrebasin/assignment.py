"""Linear assignment: the only place that pairs units, and the only one that knows how.

Everything here is exact: the value of an assignment equals that of ``scipy.optimize.linear_sum_assignment``. What is
ours is that a solver remembers the prices of its last solution, so that the next problem, which differs little, starts
almost solved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]
Problem = TypeVar("Problem")
Solution = TypeVar("Solution")

_PRICE_ROUNDS = 50


def assign(gain: Matrix) -> Index:
    """The one-to-one pairing with the largest total gain.

    Args:
        gain: shape (n, n), finite; ``gain[i, j]`` is what pairing row i with column j is worth.

    Returns:
        index of shape (n,), such that ``gain[arange(n), index].sum()`` is largest.
    """
    return np.asarray(linear_sum_assignment(gain, maximize=True)[1], dtype=np.int64)


def assign_batch(gains: Matrix, threads: int = 1) -> Index:
    """:func:`assign` for every matrix of a batch: shape (..., n, n) to (..., n).

    scipy's solver releases the GIL, so threads solve in parallel; the result does not depend on their number.
    """
    flat = gains.reshape(-1, *gains.shape[-2:])
    solved = in_threads(assign, list(flat), threads)
    return np.asarray(solved, dtype=np.int64).reshape(gains.shape[:-1])


def in_threads(
    function: Callable[[Problem], Solution], problems: Sequence[Problem], threads: int = 1
) -> list[Solution]:
    """``[function(p) for p in problems]``, on this many threads."""
    if threads <= 1 or len(problems) <= 1:
        return [function(problem) for problem in problems]
    with ThreadPoolExecutor(min(threads, len(problems))) as pool:
        return list(pool.map(function, problems))


class WarmAssignment:
    """A solver for a sequence of similar problems of one size: it starts from the last solution's prices.

    Adding a price to every column leaves the best pairing as it is. With the last problem's dual prices nearly every
    row's cheapest column is its own, which scipy's solver (shortest augmenting paths) finds in one step.
    """

    def __init__(self) -> None:
        self._prices: Matrix | None = None

    def solve(self, gain: Matrix, start: Index) -> Index:
        """The best pairing, of the same value as :func:`assign` finds.

        Args:
            gain: shape (n, n).
            start: a pairing thought to be good, shape (n,): it is put on the diagonal.
        """
        prices = np.zeros(len(start)) if self._prices is None else self._prices[start]
        cost = prices - gain[:, start]
        order = np.asarray(linear_sum_assignment(cost)[1], dtype=np.int64)
        self._prices = np.empty_like(prices)
        self._prices[start] = prices + _dual_prices(cost, order)
        return start[order]


def _dual_prices(cost: Matrix, order: Index) -> Matrix:
    """Prices under which no row prefers another column to its own: longest paths by Bellman and Ford.

    Stopped after some rounds, since prices that are nearly dual serve nearly as well.
    """
    prices = np.zeros(len(order))
    rows = np.arange(len(order))
    own = cost[rows, order]
    for _ in range(_PRICE_ROUNDS):
        demanded = ((own + prices[order])[rows, None] - cost[rows]).max(axis=0)
        raised = demanded > prices + 1e-12
        if not raised.any():
            break
        prices = np.where(raised, demanded, prices)
        rows = np.flatnonzero(raised[order])
    return prices
