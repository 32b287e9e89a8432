from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedrebasin import CalibrationError, collect_sums, recalibrate_batch_norm
from fedrebasin.sums import BatchNormMoments, add_sums
from tests.calibration.nets import ConvNet, batches, examples, mlp, random_state, split

MODEL = ConvNet()
STATE = random_state(MODEL, 1)
DATA = examples((2, 6, 6), 80, 2)


def in_training_mode(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """The slow, obvious oracle: one batch with all data in it, normalised by itself."""
    model = copy.deepcopy(MODEL).double()
    model.load_state_dict(state)
    return model.train()(inputs)


def outputs(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return functional_call(copy.deepcopy(MODEL).eval(), state, (inputs,))


@pytest.mark.parametrize("size", [80, 17, 3])
def test_exact_moments_are_those_of_one_training_batch_with_all_data(size: int) -> None:
    exact = recalibrate_batch_norm(MODEL, STATE, batches(DATA, size), passes=None)
    assert torch.allclose(outputs(exact, DATA[0]), in_training_mode(STATE, DATA[0]), rtol=1e-8, atol=1e-8)
    two = recalibrate_batch_norm(MODEL, STATE, batches(DATA, size), passes=2)
    assert all(torch.allclose(two[key], exact[key], rtol=1e-6) for key in exact)


def test_one_pass_is_exact_with_one_batch_and_for_the_first_layer() -> None:
    exact = recalibrate_batch_norm(MODEL, STATE, [DATA], passes=None)
    whole = recalibrate_batch_norm(MODEL, STATE, [DATA])
    parts = recalibrate_batch_norm(MODEL, STATE, batches(DATA, 20))
    assert all(torch.allclose(whole[key], exact[key], rtol=1e-9) for key in exact)
    assert torch.allclose(parts["norm1.running_var"], exact["norm1.running_var"], rtol=1e-9)
    assert torch.allclose(parts["norm2.running_mean"], exact["norm2.running_mean"], rtol=0.05, atol=0.05)


def test_only_statistics_change() -> None:
    new = recalibrate_batch_norm(MODEL, STATE, [DATA])
    assert list(new) == list(STATE)
    changed = {key for key in STATE if new[key] is not STATE[key]}
    assert changed == {f"norm{i}.{name}" for i in (1, 2) for name in ("running_mean", "running_var")}
    single = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}
    again = recalibrate_batch_norm(MODEL, single, [DATA[0].float()])
    assert {key: tensor.dtype for key, tensor in again.items()} == {key: t.dtype for key, t in single.items()}


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_federated_moments_are_the_central_ones(clients: int) -> None:
    statistic = BatchNormMoments("state")
    central = statistic.finish(collect_sums(statistic, MODEL, STATE, [DATA]))
    total: dict[str, Tensor] = {}
    for part in split(DATA, clients, 3):
        total = add_sums(total, collect_sums(statistic, MODEL, STATE, batches(part, 8)))
    for name, found in statistic.finish(total).items():
        assert torch.allclose(found.mean, central[name].mean, rtol=1e-6)
        assert torch.allclose(found.variance, central[name].variance, rtol=1e-6)
        assert found.count == central[name].count


def test_a_far_mean_does_not_spoil_the_variance() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inputs = torch.tensor([[1e4 - 1.0], [1e4 + 1.0]] * 20)
    assert float(recalibrate_batch_norm(model, state, [inputs])["0.running_var"]) == pytest.approx(1.0, rel=1e-6)


def test_models_without_batch_norm_and_without_data() -> None:
    plain = mlp()
    state = random_state(plain, 1)
    assert recalibrate_batch_norm(plain, state, []) == state
    with pytest.raises(CalibrationError, match="no examples"):
        recalibrate_batch_norm(MODEL, STATE, [])
    with pytest.raises(CalibrationError, match="more than once"):
        recalibrate_batch_norm(MODEL, STATE, iter([DATA]), passes=2)


class FunctionalNorm(nn.Module):
    """A batch normalisation without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.linear(x), self.running_mean, self.running_var)


def test_a_norm_by_its_function_is_measured_like_a_module() -> None:
    model = FunctionalNorm().double()
    state = model.state_dict()
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = recalibrate_batch_norm(model, state, list(inputs.split(16)))
    values = nn.functional.linear(inputs, state["linear.weight"], state["linear.bias"])
    torch.testing.assert_close(found["running_mean"], values.mean(0))
    torch.testing.assert_close(found["running_var"], values.var(0, correction=0))
