from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin import (
    CalibrationError,
    MergeError,
    barrier_value,
    evaluate,
    fit_temperature,
    interpolate,
    logits_of,
    loss_barrier,
    recalibrate_batch_norm,
)
from tests.calibration.nets import ConvNet, batches, examples, mlp, random_state

MODEL = mlp()
A, B = random_state(MODEL, 1), random_state(MODEL, 2)
DATA = batches(examples((6,), 40, 3), 16)


def test_the_two_definitions_by_hand() -> None:
    losses = [1.0, 2.5, 3.0]
    assert barrier_value(losses, "git-re-basin") == pytest.approx(3.0 - 2.0)
    assert barrier_value(losses, "simultaneous") == pytest.approx(2.5 - 2.0)
    with pytest.raises(MergeError, match="'other' is neither"):
        barrier_value(losses, "other")
    with pytest.raises(MergeError, match="both ends"):
        barrier_value([1.0])


@given(ends=st.tuples(st.floats(0, 5), st.floats(0, 5)), points=st.integers(2, 9))
def test_a_straight_line_has_no_simultaneous_barrier(ends: tuple[float, float], points: int) -> None:
    losses = torch.linspace(*ends, points, dtype=torch.float64).tolist()
    assert barrier_value(losses, "simultaneous") == pytest.approx(0, abs=1e-9)
    assert barrier_value(losses, "git-re-basin") == pytest.approx(abs(ends[0] - ends[1]) / 2, abs=1e-9)


@given(losses=st.lists(st.floats(0, 10), min_size=2, max_size=9))
def test_barriers_are_never_negative(losses: list[float]) -> None:
    assert barrier_value(losses, "git-re-basin") >= -1e-12
    assert barrier_value(losses, "simultaneous") >= 0


def test_a_model_and_itself() -> None:
    barrier = loss_barrier(MODEL, A, A, DATA, points=4)
    assert barrier.value == pytest.approx(0, abs=1e-12)
    assert barrier.losses == pytest.approx([evaluate(MODEL, A, DATA).loss] * 4)


@pytest.mark.parametrize("interpolation", ["linear", "spherical"])
def test_the_curve_is_that_of_the_models_between(interpolation: str) -> None:
    barrier = loss_barrier(MODEL, A, B, DATA, points=5, interpolation=interpolation)
    assert barrier.lams == (0, 0.25, 0.5, 0.75, 1)
    for lam, loss, accuracy in zip(barrier.lams, barrier.losses, barrier.accuracies, strict=True):
        score = evaluate(MODEL, interpolate(A, B, lam, interpolation), DATA)
        assert (score.loss, score.accuracy) == (pytest.approx(loss), accuracy)
    assert barrier.losses[0] == pytest.approx(evaluate(MODEL, A, DATA).loss)
    assert barrier.losses[-1] == pytest.approx(evaluate(MODEL, B, DATA).loss)
    assert loss_barrier(MODEL, B, A, DATA, points=5, interpolation=interpolation).losses == pytest.approx(
        barrier.losses[::-1]
    )
    assert len(loss_barrier(MODEL, A, B, DATA).lams) == 25


def test_spherical_interpolation_keeps_the_length_of_orthogonal_vectors() -> None:
    a, b = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}
    middle = interpolate(a, b, 0.5, "spherical")["w"]
    assert middle.tolist() == pytest.approx([3 / math.sqrt(2)] * 2)
    assert torch.allclose(interpolate(a, a, 0.3, "spherical")["w"], a["w"])


def test_calibrated_loss_and_recalibrated_statistics() -> None:
    model = ConvNet()
    a, b = random_state(model, 1), random_state(model, 2)
    data = batches(examples((2, 6, 6), 40, 3), 20)
    barrier = loss_barrier(model, a, b, data, points=3, recalibrate=data, calibrate=data)
    state = recalibrate_batch_norm(model, interpolate(a, b, 0.5), data)
    fitted = fit_temperature(*logits_of(model, state, data))
    assert barrier.betas[1] == pytest.approx(fitted.beta)
    assert barrier.losses[1] == pytest.approx(fitted.nll_after)
    assert all(math.isclose(beta, 1) for beta in loss_barrier(model, a, b, data, points=3).betas)


def test_integer_tensors_are_those_of_a() -> None:
    a, b = {"n": torch.tensor(3), "w": torch.zeros(2)}, {"n": torch.tensor(5), "w": torch.ones(2)}
    assert interpolate(a, b, 0.75)["n"].item() == 3
    assert interpolate(a, b, 0.75)["w"].tolist() == [0.75, 0.75]
    half = interpolate({"w": torch.zeros(2).half()}, {"w": torch.ones(2).half()}, 0.5)["w"]
    assert half.dtype == torch.float16


def test_wrong_input_is_refused() -> None:
    with pytest.raises(MergeError, match="1 points"):
        loss_barrier(MODEL, A, B, DATA, points=1)
    with pytest.raises(MergeError, match=r"differ in the keys 4\.bias"):
        interpolate(A, {key: tensor for key, tensor in B.items() if key != "4.bias"}, 0.5)
    with pytest.raises(MergeError, match=r"0\.bias: shapes"):
        interpolate(A, {**B, "0.bias": torch.zeros(3)}, 0.5)
    with pytest.raises(CalibrationError, match="more than once"):
        loss_barrier(MODEL, A, B, iter(DATA))
