from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import CalibrationError, MergeError, collect_sums, evaluate, ridge_head
from fedrebasin.sums import HeadSums, add_sums
from tests.calibration.nets import CLASSES, batches, examples, mlp, random_state, split

MODEL = mlp(width=16)
STATE = random_state(MODEL, 1)
HEAD = "4.weight"


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, _ = examples((6,), count, seed)
    return inputs, inputs[:, :CLASSES].argmax(1)


def sums_of(
    data: tuple[Tensor, Tensor], model: nn.Module = MODEL, state: dict[str, Tensor] = STATE
) -> dict[str, Tensor]:
    return collect_sums(HeadSums(HEAD), model, state, batches(data, 16))


def features(data: tuple[Tensor, Tensor]) -> Tensor:
    front = nn.Sequential(*list(MODEL)[:-1])
    rows = torch.func.functional_call(front, {k: v for k, v in STATE.items() if not k.startswith("4")}, (data[0],))
    return rows.detach()


def test_ridge_regression_in_closed_form() -> None:
    data = separable(100, 2)
    fitted = ridge_head(STATE, HEAD, [sums_of(data)], ridge=1e-2)
    x, y = features(data), nn.functional.one_hot(data[1], CLASSES).double()
    x0, y0 = x - x.mean(0), y - y.mean(0)
    damping = 1e-2 * x0.square().sum(0).mean() * torch.eye(16, dtype=torch.float64)
    weights = torch.linalg.solve(x0.T @ x0 + damping, x0.T @ y0)
    assert torch.allclose(fitted.state[HEAD], weights.T)
    assert torch.allclose(fitted.state["4.bias"], y.mean(0) - x.mean(0) @ weights)
    assert all(fitted.state[key] is STATE[key] for key in STATE if not key.startswith("4"))


def test_generalised_cross_validation_by_the_hat_matrix() -> None:
    data = separable(60, 3)
    scores = ridge_head(STATE, HEAD, [sums_of(data)]).scores
    x, y = features(data), nn.functional.one_hot(data[1], CLASSES).double()
    x0, y0 = x - x.mean(0), y - y.mean(0)
    for ridge in (1e-6, 1e-2, 1.0):
        near = min(scores, key=lambda each: abs(each - ridge))
        damping = near * x0.square().sum(0).mean() * torch.eye(16, dtype=torch.float64)
        hat = x0 @ torch.linalg.solve(x0.T @ x0 + damping, x0.T) + 1 / 60
        residual = float((y - hat @ y).square().sum()) / 60
        assert scores[near] == pytest.approx(residual / (1 - float(hat.trace()) / 60) ** 2, rel=1e-6)
        assert torch.allclose(y0 - (y - y.mean(0)), torch.zeros_like(y))


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_the_federated_head_is_the_central_one(clients: int) -> None:
    data = separable(150, 4)
    central = ridge_head(STATE, HEAD, [sums_of(data)])
    parts = [sums_of(part) for part in split(data, clients, 5) if len(part[0])]
    federated = ridge_head(STATE, HEAD, parts)
    assert federated.ridge == central.ridge
    assert torch.allclose(federated.state[HEAD], central.state[HEAD], rtol=1e-6, atol=1e-8)
    total: dict[str, Tensor] = {}
    for part in parts:
        total = add_sums(total, part)
    assert torch.allclose(ridge_head(STATE, HEAD, [total]).state[HEAD], central.state[HEAD], rtol=1e-6, atol=1e-8)


def test_leaving_clients_out_is_what_it_says() -> None:
    data = separable(90, 6)
    parts = batches(data, 30)
    scores = ridge_head(STATE, HEAD, [sums_of(part) for part in parts], selection="leave-one-client-out").scores
    ridge = min(scores, key=lambda each: abs(each - 0.1))
    total = 0.0
    for left_out in range(3):
        others = [sums_of(part) for i, part in enumerate(parts) if i != left_out]
        head = ridge_head(STATE, HEAD, others, ridge=ridge).state
        rows = features(parts[left_out]) @ head[HEAD].T + head["4.bias"]
        total += float((rows - nn.functional.one_hot(parts[left_out][1], CLASSES)).square().sum())
    assert scores[ridge] == pytest.approx(total / 90, rel=1e-6)


def test_a_random_net_with_a_ridge_head_is_better_than_chance() -> None:
    fitted = ridge_head(STATE, HEAD, [sums_of(separable(400, 8))])
    held_out = [separable(400, 9)]
    assert evaluate(MODEL, fitted.state, held_out).accuracy > 0.5 > evaluate(MODEL, STATE, held_out).accuracy


def test_noise_wants_more_ridge_than_signal() -> None:
    signal = ridge_head(STATE, HEAD, [sums_of(separable(80, 1))]).ridge
    inputs, labels = examples((6,), 80, 1)
    assert ridge_head(STATE, HEAD, [sums_of((inputs, labels))]).ridge > signal


def test_a_head_without_a_bias_and_dead_features() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES, bias=False))
    state = random_state(model, 1)
    state["0.weight"][2] = 0.0
    state["0.bias"][2] = -1.0
    data = separable(100, 2)
    sums = collect_sums(HeadSums("2.weight"), model, state, [data])
    fitted = ridge_head(state, "2.weight", [sums])
    assert list(fitted.state) == list(state)
    assert bool(torch.isfinite(fitted.state["2.weight"]).all())
    assert evaluate(model, fitted.state, [data]).accuracy > 0.5


def test_wrong_input_is_refused() -> None:
    sums = sums_of(separable(30, 1))
    with pytest.raises(MergeError, match="at least one client"):
        ridge_head(STATE, HEAD, [])
    with pytest.raises(MergeError, match="'absent' is not the weight"):
        ridge_head(STATE, "absent", [sums])
    with pytest.raises(MergeError, match="class sums of shape"):
        ridge_head(STATE, "2.weight", [sums])
    with pytest.raises(MergeError, match="must not be negative"):
        ridge_head(STATE, HEAD, [sums], ridge=-1.0)
    with pytest.raises(MergeError, match="of 1 clients"):
        ridge_head(STATE, HEAD, [sums], selection="leave-one-client-out")
    HeadSums(HEAD, (CLASSES, 16)).validate(sums)
    with pytest.raises(CalibrationError, match=r"class sums of shape \(17, 4\) do not fit \(4, 20\)"):
        HeadSums(HEAD, (CLASSES, 20)).validate(sums)
    inputs, labels = separable(10, 1)
    with pytest.raises(CalibrationError, match="labels must lie in"):
        collect_sums(HeadSums(HEAD), MODEL, STATE, [(inputs, labels + CLASSES)])
    sums["classes"][-1, 0] += 3
    with pytest.raises(CalibrationError, match="histogram does not add up"):
        HeadSums(HEAD).validate(sums)
