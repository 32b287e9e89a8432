"""Linear assignment: the only place that pairs units, and the only one that knows how.

Everything here is exact: the value of an assignment equals that of ``scipy.optimize.linear_sum_assignment``. What is
ours is that a solver remembers the prices of its last solution, so that the next problem, which differs little, starts
almost solved.
"""

import numpy as np
from numpy.typing import NDArray

from fedrebasin.threads import in_threads

Matrix = NDArray[np.float64]
Index = NDArray[np.int64]


def assign(gain: Matrix) -> Index:
    """The one-to-one pairing with the largest total gain.

    Args:
        gain: shape (n, n), finite; ``gain[i, j]`` is what pairing row i with column j is worth.

    Returns:
        index of shape (n,), such that ``gain[arange(n), index].sum()`` is largest.
    """
    return _with_small_rows(gain, _cheapest(-gain))


def assign_batch(gains: Matrix, threads: int = 1) -> Index:
    """:func:`assign` for every matrix of a batch: shape (..., n, n) to (..., n).

    scipy's solver releases the GIL, so threads solve in parallel; the result does not depend on their number.
    """
    flat = gains.reshape(-1, *gains.shape[-2:])
    solved = in_threads(assign, list(flat), threads)
    return np.asarray(solved, dtype=np.int64).reshape(gains.shape[:-1])


class WarmAssignment:
    """A solver for a sequence of similar problems of one size: it keeps the prices of the last one.

    Adding a price to every column leaves the best pairing as it is, but under good prices nearly every row's best
    column is its own, so that scipy's shortest augmenting paths are short. The prices are those of the entropic
    relaxation (Sinkhorn's scaling), brought up to date by some matrix-vector products: on trained networks a solve
    takes a third of the time. Prices change the time only, never the value of the result.
    """

    def __init__(self) -> None:
        self._prices: Matrix | None = None

    def solve(self, gain: Matrix) -> Index:
        """The best pairing, of the same value as :func:`assign` finds.

        Args:
            gain: shape (n, n).
        """
        if len(gain) < _SMALL:
            return assign(gain)
        self._prices = _entropic_prices(gain, self._prices)
        index = _cheapest(self._prices - gain)
        return _with_small_rows(gain, index)


def _cheapest(cost: Matrix) -> Index:
    from scipy.optimize import linear_sum_assignment  # late: importing it takes as long as a third of torch

    return np.asarray(linear_sum_assignment(cost)[1], dtype=np.int64)


def _with_small_rows(gain: Matrix, index: Index) -> Index:
    """The pairing, with the rows paired anew whose gains are rounding next to the largest one.

    A solver adds and subtracts the largest gains everywhere, and what is smaller than their rounding is lost: a row of
    small units next to a huge one would be paired at random. Their columns are dealt out anew among themselves.
    """
    paired = np.abs(gain[np.arange(len(gain)), index])
    if not len(gain) or paired.min() >= _ROUNDING * paired.max():  # as nearly always: the whole matrix need not be read
        return index
    sizes = np.maximum(gain.max(axis=1), -gain.min(axis=1))
    small = np.flatnonzero(sizes < _ROUNDING * sizes.max())
    if len(small) > 1:
        columns = index[small]
        index[small] = columns[assign(gain[np.ix_(small, columns)])]
    return index


def _entropic_prices(gain: Matrix, prices: Matrix | None) -> Matrix:
    """Column prices of the entropic relaxation, from earlier ones on (float32: they need not be exact)."""
    worth = gain.astype(np.float32)
    with np.errstate(over="ignore"):
        temperature = _TEMPERATURE * float(worth[:: max(1, len(worth) // 64)].std())
    before = np.zeros(len(gain), np.float32) if prices is None else prices.astype(np.float32)
    if temperature == 0 or not np.isfinite(temperature):
        return before.astype(np.float64)
    worth -= before
    worth -= worth.max(axis=1, keepdims=True)
    worth *= 1 / temperature
    kernel = np.exp(np.maximum(worth, _LEAST_EXPONENT, out=worth), out=worth)
    columns: NDArray[np.float32] = np.ones(len(gain), np.float32)
    for _ in range(_SCALINGS):
        rows = 1 / (kernel @ columns)
        columns = np.asarray(1 / (rows @ kernel), np.float32)
    return np.asarray(before - np.log(columns) * temperature, dtype=np.float64)


# Gains this small, as a share of the largest, are solved for by themselves.
_ROUNDING = 1e-7
# Measured on trained networks.
_SMALL = 100
_TEMPERATURE = 0.12  # standard deviations of the matrix
_SCALINGS = 10
# Nothing in the kernel becomes denormal, which would be slow, and no column's sum zero.
_LEAST_EXPONENT = -60
