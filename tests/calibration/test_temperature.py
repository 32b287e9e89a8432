from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedrebasin import CalibrationError, PermutationSpec, collect_sums, fit_temperature, fold_temperature
from fedrebasin.sums import TemperatureCurve, add_sums, logits_of
from fedrebasin.watching import head_weight
from tests.calibration.nets import batches, examples, mlp, random_state, split


def sampled(beta: float, count: int, seed: int, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits whose labels are drawn at the inverse temperature beta."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(torch.softmax(beta * logits, 1), 1, generator=generator)[:, 0]


def test_two_classes_in_closed_form() -> None:
    # Three of four are right with a margin of 2: sigmoid(2 beta) = 3/4.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    fitted = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fitted.beta == pytest.approx(math.log(3) / 2, rel=1e-10)
    assert fitted.nll_after == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-10)


def test_the_true_temperature_is_found() -> None:
    assert fit_temperature(*sampled(0.4, 20000, 1)).beta == pytest.approx(0.4, rel=0.03)


@settings(deadline=None, max_examples=50)
@given(beta=st.floats(0.05, 3), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_no_other_beta_is_better_and_scaling_the_logits_scales_beta(beta: float, scale: float, seed: int) -> None:
    logits, labels = sampled(beta, 60, seed)
    fitted = fit_temperature(logits, labels)
    assert fitted.nll_after <= fitted.nll_before
    spread = float(logits.var(1, correction=0).mean().sqrt())
    inside = 1.001e-3 < fitted.beta * spread < 999  # else the best beta is 0 or infinite
    for other in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert not inside or fitted.nll_after <= float(cross_entropy(other * fitted.beta * logits, labels)) + 1e-12
    assert fit_temperature(scale * logits, labels).beta * scale == pytest.approx(fitted.beta, rel=1e-6)


def test_an_infinite_or_zero_optimum_is_bounded() -> None:
    logits, _ = sampled(1, 50, 2)
    spread = float(logits.var(1, correction=0).mean().sqrt())
    assert fit_temperature(logits, logits.argmax(1)).beta == pytest.approx(1e3 / spread)
    assert fit_temperature(logits, logits.argmin(1)).beta == pytest.approx(1e-3 / spread)
    flat = fit_temperature(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    assert (flat.beta, flat.nll_after) == (1.0, pytest.approx(math.log(3)))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no logits"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), "not finite"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels lie in 0 .. 3 where there are 3 classes"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), r"labels lie in -1 .. 0"),
        (torch.zeros(2, 3), torch.tensor([0]), r"\(2, 3\) and labels of shape \(1,\)"),
    ],
)
def test_unusable_logits_are_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("clients", [1, 3, 50])
@pytest.mark.parametrize("beta", [0.02, 0.5, 6.0])
def test_the_federated_temperature_is_the_central_one(clients: int, beta: float) -> None:
    logits, labels = sampled(1.0, 400, 3)
    model, state = nn.Identity(), {"unused": torch.zeros(1)}
    data = (logits / beta, labels)
    total: dict[str, Tensor] = {}
    for part in split(data, clients, 4):
        total = add_sums(total, collect_sums(TemperatureCurve(), model, state, batches(part, 64)))
    TemperatureCurve().validate(total)
    federated, central = TemperatureCurve().finish(total), fit_temperature(*data)
    assert federated.beta == pytest.approx(central.beta, rel=1e-4)
    assert federated.nll_before == pytest.approx(central.nll_before, rel=1e-9)
    assert federated.nll_after == pytest.approx(central.nll_after, rel=1e-6)


def test_the_ends_of_the_grid() -> None:
    logits, _ = sampled(1.0, 50, 5)
    statistic = TemperatureCurve((0.5, 1.0, 2.0))
    for labels, end in ((logits.argmax(1), 2.0), (logits.argmin(1), 0.5)):
        sums = collect_sums(statistic, nn.Identity(), {}, [(logits, labels)])
        assert statistic.finish(sums).beta == end
    with pytest.raises(CalibrationError, match="positive and ascending"):
        TemperatureCurve((1.0, 0.5))


def test_folding_scales_the_logits() -> None:
    model = mlp()
    state = random_state(model, 1)
    data = batches(examples((6,), 20, 2), 8)
    head = head_weight(model, state, data[0])
    assert head == "4.weight"
    folded = fold_temperature(state, 2.5, head)
    assert torch.allclose(logits_of(model, folded, data)[0], 2.5 * logits_of(model, state, data)[0])
    with pytest.raises(CalibrationError, match="must be positive"):
        fold_temperature(state, 0.0, head)


def test_the_spec_knows_the_layer_to_fold_into() -> None:
    model = mlp()
    state = random_state(model, 1)
    traced = PermutationSpec.trace(model, torch.zeros(2, 6))
    by_hand = PermutationSpec.from_axes(
        {
            "0.weight": ("P", None),
            "0.bias": ("P",),
            "2.weight": ("Q", "P"),
            "2.bias": ("Q",),
            "4.weight": (None, "Q"),
            "4.bias": (None,),
        }
    )
    expected = fold_temperature(state, 2.5, "4.weight")
    for spec in (traced, by_hand):
        folded = fold_temperature(state, 2.5, spec)
        assert all(torch.equal(folded[key], expected[key]) for key in state)
    with pytest.raises(CalibrationError, match="names no single last layer"):
        fold_temperature(state, 2.5, PermutationSpec.from_axes({"0.weight": ("P", None), "2.weight": ("P", None)}))
