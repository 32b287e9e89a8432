from __future__ import annotations

import pytest
import torch
from torch import nn

from fedrebasin import CalibrationError, PermutationSpec, average, collect_sums, recalibrate_batch_norm, repair
from fedrebasin.calibration import interpolated_moments, repairable_weights
from fedrebasin.sums import PreActivationMoments
from tests.calibration.nets import ConvNet, batches, examples, mlp, random_state


def moments_of(model, state, weights, data):
    statistic = PreActivationMoments(weights)
    return statistic.finish(collect_sums(statistic, model, state, data))


def setting(model: nn.Module, shape: tuple[int, ...], clients: int = 2):
    states = [random_state(model, seed) for seed in range(clients)]
    data = examples(shape, 60, 9)
    spec = PermutationSpec.trace(model, data[0][:2].float())
    return states, average(states), data, spec


@pytest.mark.parametrize("size", [60, 13])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_hidden_pre_activations_get_the_interpolated_moments(size: int, weights: list[float] | None) -> None:
    model = mlp()
    states, merged, data, spec = setting(model, (6,))
    parts = batches(data, size)
    hidden = repairable_weights(model, merged, parts[0], spec)
    assert hidden == ("0.weight", "2.weight")
    repaired = repair(model, merged, states, parts, spec, weights, passes=1 if size == 60 else 2)
    targets = interpolated_moments([moments_of(model, state, hidden, parts) for state in states], weights)
    found = moments_of(model, repaired, hidden, parts)
    for key in hidden:
        assert torch.allclose(found[key].mean, targets[key].mean, rtol=1e-6, atol=1e-9)
        assert torch.allclose(found[key].variance, targets[key].variance, rtol=1e-6)
    shares = torch.tensor(weights or [1.0, 1.0])
    first = [moments_of(model, state, hidden, parts)["0.weight"].variance.sqrt() for state in states]
    expected = (shares[0] * first[0] + shares[1] * first[1]) / shares.sum()
    assert torch.allclose(targets["0.weight"].variance.sqrt(), expected)
    assert all(torch.equal(repaired[key], merged[key]) for key in ("4.weight", "4.bias"))


def test_averaging_takes_variance_and_repair_gives_it_back() -> None:
    model = ConvNet(norm=False)
    states, merged, data, spec = setting(model, (2, 6, 6), clients=4)
    hidden = repairable_weights(model, merged, data, spec)
    assert hidden == ("conv1.weight", "conv2.weight", "hidden.weight")
    ends = [moments_of(model, state, hidden, [data]) for state in states]
    naive, repaired = (
        moments_of(model, state, hidden, [data]) for state in (merged, repair(model, merged, states, [data], spec))
    )
    for key in hidden:
        spread = torch.stack([each[key].variance.sqrt() for each in ends]).mean(0)
        assert float((naive[key].variance.sqrt() / spread).mean()) < 0.8
        assert torch.allclose(repaired[key].variance.sqrt(), spread, rtol=1e-6)


def test_equal_end_points_change_nothing() -> None:
    model = mlp()
    (state, _), _, data, spec = setting(model, (6,))
    repaired = repair(model, state, [state, state], [data], spec)
    assert all(torch.allclose(repaired[key], state[key], rtol=1e-9, atol=1e-12) for key in state)


def test_layers_before_a_batch_norm_are_left_to_it() -> None:
    model = ConvNet()
    states, merged, data, spec = setting(model, (2, 6, 6))
    assert repairable_weights(model, merged, data, spec) == ("hidden.weight",)
    repaired = repair(model, merged, states, [data], spec)
    recalibrated = recalibrate_batch_norm(model, merged, [data])
    for key in merged:
        expected = recalibrated if key.startswith("norm") else merged
        assert key.startswith("hidden") or torch.allclose(repaired[key], expected[key], rtol=1e-6, atol=1e-9)


def test_without_a_bias_only_the_spread_is_restored() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    states, merged, data, spec = setting(model, (6,))
    repaired = repair(model, merged, states, [data], spec)
    assert list(repaired) == list(merged)
    targets = interpolated_moments([moments_of(model, state, ("0.weight",), [data]) for state in states])
    found = moments_of(model, repaired, ("0.weight",), [data])
    assert torch.allclose(found["0.weight"].variance, targets["0.weight"].variance, rtol=1e-6)


def test_a_unit_that_never_varies_is_only_shifted() -> None:
    model = mlp()
    states, merged, data, spec = setting(model, (6,))
    merged["0.weight"][3] = 0.0
    repaired = repair(model, merged, states, [data], spec)
    assert torch.equal(repaired["0.weight"][3], torch.zeros(6, dtype=torch.float64))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in repaired.values())


def test_no_data_and_no_end_points() -> None:
    model = mlp()
    states, merged, data, spec = setting(model, (6,))
    with pytest.raises(CalibrationError, match="no batches"):
        repair(model, merged, states, [], spec)
    with pytest.raises(CalibrationError, match="0 end points"):
        repair(model, merged, [], [data], spec)
    with pytest.raises(CalibrationError, match="more than once"):
        repair(model, merged, states, iter([data]), spec)
