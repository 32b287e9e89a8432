from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fedrebasin.matching.steps.assignment import WarmAssignment, assign, assign_batch
from tests.zoo import few_examples


def value(gain: np.ndarray, index: np.ndarray) -> float:
    assert sorted(index) == list(range(len(gain)))
    return float(gain[np.arange(len(gain)), index].sum())


def best_value(gain: np.ndarray) -> float:
    return float(gain[linear_sum_assignment(gain, maximize=True)].sum())


@few_examples
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_no_permutation_is_better(size: int, seed: int) -> None:
    gain = np.random.default_rng(seed).standard_normal((size, size))
    best = max(value(gain, np.array(order)) for order in itertools.permutations(range(size)))
    assert value(gain, assign(gain)) == pytest.approx(best)


@few_examples
@given(st.integers(0, 2**31), st.sampled_from([3, 110, 150]), st.sampled_from(["normal", "ties", "low rank", "huge"]))
def test_warm_solves_have_scipys_value(seed: int, size: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    solver = WarmAssignment()
    gain = random.standard_normal((size, size))
    for _ in range(4):
        match kind:
            case "ties":
                shown = np.round(gain)
            case "low rank":
                shown = gain[:, :2] @ gain[:2]
            case "huge":
                shown = gain * 1e30
            case _:
                shown = gain
        assert value(shown, solver.solve(shown)) == pytest.approx(best_value(shown), rel=1e-12)
        gain = gain + 0.1 * random.standard_normal((size, size))


@pytest.mark.parametrize("gain", [np.zeros((120, 120)), np.eye(120), np.full((120, 120), -7.0), np.eye(120) * 1e-300])
def test_matrices_without_spread_are_solved(gain: np.ndarray) -> None:
    assert value(gain, WarmAssignment().solve(gain)) == best_value(gain)


def test_a_batch_is_solved_one_by_one_on_any_number_of_threads() -> None:
    gains = np.random.default_rng(0).standard_normal((2, 3, 7, 7))
    one, four = assign_batch(gains, 1), assign_batch(gains, 4)
    assert np.array_equal(one, four)
    assert all(np.array_equal(one[i, j], assign(gains[i, j])) for i in range(2) for j in range(3))
