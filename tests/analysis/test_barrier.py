from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from fedrebasin import (
    CalibrationError,
    MergeError,
    collect_sums,
    evaluate,
    feature_connectivity,
    fit_temperature,
    interpolate,
    loss_barrier,
    recalibrate_batch_norm,
)
from fedrebasin.analysis import PathEvaluation, barrier_value, loss_plane
from fedrebasin.sums import logits_of
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


def sign_symmetric(scale: float) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Logits (0.1 s^2, u v) on the input 1, with (u, v) = (s, s) in A and (-s, -s) in B: one function."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    bias = torch.tensor([0.1 * scale**2, 0.0], dtype=torch.float64)
    a, b = (
        {
            "0.weight": torch.full((1, 1), sign * scale, dtype=torch.float64),
            "1.weight": torch.tensor([[0.0], [sign * scale]], dtype=torch.float64),
            "1.bias": bias,
        }
        for sign in (1.0, -1.0)
    )
    return model, a, b


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.2, 3))
def test_loss_and_error_barrier_in_closed_form(scale: float) -> None:
    model, a, b = sign_symmetric(scale)
    data = [(torch.ones(2, 1, dtype=torch.float64), torch.ones(2, dtype=torch.int64))]
    # at lam the product of the two layers is s^2 (1 - 2 lam)^2, and the loss log(1 + exp(0.1 s^2 - product))
    found = loss_barrier(model, a, b, data, 5)
    products = [(1 - 2 * lam) ** 2 for lam in (0, 0.25, 0.5, 0.75, 1)]
    expected = [math.log1p(math.exp(scale**2 * (0.1 - product))) for product in products]
    assert found.losses == pytest.approx(expected)
    assert found.value == pytest.approx(expected[2] - expected[0])
    # the answer is wrong where the product is below 0.1 s^2
    assert found.errors == (0, 0, 1, 0, 0)
    assert found.error_barrier() == found.error_barrier("simultaneous") == 1


def test_the_error_barrier_follows_its_definition() -> None:
    found = loss_barrier(MODEL, A, B, DATA, points=5)
    errors = [1 - accuracy for accuracy in found.accuracies]
    assert found.errors == pytest.approx(errors)
    assert found.error_barrier() == pytest.approx(max(errors) - (errors[0] + errors[-1]) / 2)
    lines = [(1 - lam) * errors[0] + lam * errors[-1] for lam in found.lams]
    assert found.error_barrier("simultaneous") == pytest.approx(
        max(error - line for error, line in zip(errors, lines, strict=True))
    )
    assert loss_barrier(MODEL, A, A, DATA, points=3).error_barrier() == 0


def angle(x: torch.Tensor, y: torch.Tensor) -> float:
    return math.acos(max(-1.0, min(1.0, float((x * y).sum() / (x.norm() * y.norm())))))


@settings(deadline=None, max_examples=40)
@given(lam=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_arc_keeps_the_length_and_the_angle(lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    b = b / b.norm() * a.norm()
    states = [{"w": x[0], "v": x[1], "n.running_var": x[0].abs()} for x in (a, b)]
    found = interpolate(*states, lam, "spherical")
    middle = torch.stack([found["w"], found["v"]])
    assert float(middle.norm()) == pytest.approx(float(a.norm()))
    assert angle(middle, a) == pytest.approx(lam * angle(a, b), abs=1e-6)
    assert angle(middle, b) == pytest.approx((1 - lam) * angle(a, b), abs=1e-6)
    line = (1 - lam) * states[0]["n.running_var"] + lam * states[1]["n.running_var"]
    torch.testing.assert_close(found["n.running_var"], line)


def test_statistics_and_temperature_of_every_point_are_those_taken_by_hand() -> None:
    model = ConvNet()
    a, b = random_state(model, 1), random_state(model, 2)
    whole = examples((2, 6, 6), 40, 3)
    found = loss_barrier(model, a, b, [whole], points=4, recalibrate=[whole], calibrate=[whole])
    # on a single batch, PyTorch's own normalisation in training is what the recalibrated model does
    oracle, slopes = ConvNet().double().train(), []
    for lam, loss, accuracy, beta in zip(found.lams, found.losses, found.accuracies, found.betas, strict=True):
        state = {key: (1 - lam) * a[key] + lam * b[key] if a[key].is_floating_point() else a[key] for key in a}
        with torch.no_grad():
            logits = functional_call(oracle, {key: tensor.clone() for key, tensor in state.items()}, (whole[0],))
        scaled = (beta * logits.double()).requires_grad_()
        nll = torch.nn.functional.cross_entropy(scaled, whole[1])
        assert loss == pytest.approx(nll.item(), rel=1e-6)
        assert accuracy == pytest.approx(float((logits.argmax(1) == whole[1]).double().mean()))
        (slope,) = torch.autograd.grad(nll, scaled)
        slopes.append(float((slope * logits).sum()))
        assert slopes[-1] > -1e-6
    # beta is where the NLL is least; where the logits say less than nothing it is as small as it may be
    assert [slope < 1e-6 for slope in slopes] == [beta > 0.01 for beta in found.betas]
    assert min(slopes) < 1e-6


class Counted(nn.Module):
    """Counts the state dicts that are alive whenever it runs, by the weight that each brings along."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.seen: dict[int, weakref.ref[torch.Tensor]] = {}
        self.most, self.runs = 0, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.linear.weight
        self.seen = {key: ref for key, ref in self.seen.items() if ref() is not None}
        self.seen[id(weight)] = weakref.ref(weight)
        self.most, self.runs = max(self.most, len(self.seen)), self.runs + 1
        return torch.nn.functional.linear(inputs, weight, self.linear.bias)

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise AssertionError("the model is copied")


MEASURES_ALONG_A_PATH = {
    "barrier": lambda model, a, b: loss_barrier(model, a, b, DATA),
    "calibrated": lambda model, a, b: loss_barrier(model, a, b, DATA, recalibrate=DATA, calibrate=DATA),
    "plane": lambda model, a, b: loss_plane(model, a, b, {key: tensor**2 for key, tensor in a.items()}, DATA, 5),
    "features": lambda model, a, b: feature_connectivity(model, a, b, DATA, [k / 24 for k in range(25)], layers=[""]),
    "path": lambda model, a, b: collect_sums(PathEvaluation(b, 25), model, a, DATA),
}


@pytest.mark.parametrize("name", MEASURES_ALONG_A_PATH)
def test_no_model_is_copied_for_every_point(name: str) -> None:
    model = Counted()
    a, b = random_state(model, 1), random_state(model, 2)
    MEASURES_ALONG_A_PATH[name](model, a, b)
    assert model.runs >= 25 * len(DATA)
    assert model.most <= 4  # A, B, the point at hand and the one before it


def test_unknown_names_are_refused_before_anything_is_evaluated() -> None:
    model = Counted()
    with pytest.raises(MergeError, match="'other' is neither"):
        loss_barrier(model, A, B, DATA, definition="other")
    with pytest.raises(MergeError, match="interpolation 'quadratic' is neither"):
        loss_barrier(model, A, B, DATA, interpolation="quadratic")
    assert model.runs == 0
