"""The laws of sums: commutative, associative, independent of batching and of the split over clients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedrebasin import CalibrationError, Statistic, collect_sums
from fedrebasin.calibration import Reliability
from fedrebasin.sums import (
    BatchNormMoments,
    Evaluation,
    GramMatrices,
    HeadSums,
    LayerRegression,
    PreActivationMoments,
    TemperatureCurve,
    add_sums,
)
from tests.calibration.nets import AttentionNet, ConvNet, batches, examples, mlp, random_state, split

MODEL = ConvNet()
STATE = random_state(MODEL, 1)
DATA = examples((2, 6, 6), 90, 2)

STATISTICS: dict[str, Statistic[object]] = {
    "batch-norm": BatchNormMoments("state"),
    "evaluation": Evaluation(beta=0.7),
    "gram": GramMatrices(),
    "gram-diagonal": GramMatrices(max_features=20),
    "head": HeadSums("head.weight"),
    "layer-regression": LayerRegression("conv2.weight", random_state(MODEL, 3)),
    "pre-activations": PreActivationMoments(("conv1.weight", "hidden.weight")),
    "reliability": Reliability(),
    "temperature": TemperatureCurve(),
}


def close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-10) -> bool:
    return set(left) == set(right) and all(
        torch.allclose(left[key], right[key], rtol=tolerance, atol=tolerance * float(right[key].abs().max()))
        for key in left
    )


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize(("clients", "size"), [(1, 90), (3, 7), (50, 4)])
def test_federated_equals_central_whatever_the_split_and_the_batching(name: str, clients: int, size: int) -> None:
    statistic = STATISTICS[name]
    central = collect_sums(statistic, MODEL, STATE, batches(DATA, 90))
    total: dict[str, Tensor] = {}
    parts = split(DATA, clients, 4)
    for part in parts:
        total = add_sums(total, collect_sums(statistic, MODEL, STATE, batches(part, size)))
    assert clients < 50 or any(len(part[0]) == 0 for part in parts)
    assert close(total, central)
    statistic.validate(total)
    statistic.finish(total)


@pytest.mark.parametrize("name", STATISTICS)
def test_sums_are_a_commutative_monoid(name: str) -> None:
    statistic = STATISTICS[name]
    a, b, c = (collect_sums(statistic, MODEL, STATE, batches(part, 16)) for part in split(DATA, 3, 5))
    assert close(add_sums(a, b), add_sums(b, a), 0)
    assert close(add_sums(add_sums(a, b), c), add_sums(a, add_sums(b, c)), 1e-14)
    assert close(add_sums(a, {}), a, 0)
    assert close(add_sums({}, a), a, 0)


@settings(deadline=None, max_examples=25)
@given(clients=st.integers(1, 12), size=st.integers(1, 40), seed=st.integers(0, 10**6), examples_=st.integers(1, 60))
def test_moments_and_gram_matrices_on_any_split(clients: int, size: int, seed: int, examples_: int) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    state = random_state(model, seed)
    data = examples((3,), examples_, seed)
    for statistic in (BatchNormMoments("state"), GramMatrices()):
        total: dict[str, Tensor] = {}
        for part in split(data, clients, seed):
            total = add_sums(total, collect_sums(statistic, model, state, batches(part, size)))
        assert close(total, collect_sums(statistic, model, state, [data]))
        statistic.validate(total)


@pytest.mark.parametrize("name", STATISTICS)
def test_payload_is_float64_and_leaves_model_and_state_as_they_were(name: str) -> None:
    before = {key: tensor.clone() for key, tensor in STATE.items()}
    own = {key: tensor.clone() for key, tensor in MODEL.state_dict().items()}
    MODEL.train()
    sums = collect_sums(STATISTICS[name], MODEL, STATE, batches(DATA, 30))
    assert all(tensor.dtype == torch.float64 for tensor in sums.values())
    assert all(module.training for module in MODEL.modules())
    assert all(torch.equal(before[key], STATE[key]) for key in before)
    assert all(torch.equal(own[key], tensor) for key, tensor in MODEL.state_dict().items())
    assert not any(module._forward_pre_hooks for module in MODEL.modules())


@pytest.mark.parametrize("name", STATISTICS)
def test_no_data_is_zero_and_cannot_be_finished(name: str) -> None:
    statistic = STATISTICS[name]
    assert collect_sums(statistic, MODEL, STATE, []) == {}
    assert collect_sums(statistic, MODEL, STATE, [(DATA[0][:0], DATA[1][:0])]) == {}
    with pytest.raises(CalibrationError, match="no examples"):
        statistic.finish({})


def test_few_examples_are_not_sent() -> None:
    with pytest.raises(CalibrationError, match="5 examples are fewer than the 8"):
        collect_sums(Evaluation(), MODEL, STATE, [(DATA[0][:5], DATA[1][:5])], min_examples=8)


def test_sums_of_different_shapes_are_not_added() -> None:
    with pytest.raises(CalibrationError, match=r"shape \(3,\) cannot be added to \(2,\)"):
        add_sums({"a": torch.ones(2)}, {"a": torch.ones(3)})


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("damage", ["nan", "missing", "no-examples", "negative"])
def test_absurd_sums_are_refused(name: str, damage: str) -> None:
    statistic = STATISTICS[name]
    sums = collect_sums(statistic, MODEL, STATE, [DATA])
    key = next(key for key in sums if key != "examples")
    match damage:
        case "nan":
            sums[key] = torch.full_like(sums[key], torch.nan)
        case "missing":
            del sums["examples"]
        case "no-examples":
            sums["examples"] = torch.tensor(0.0, dtype=torch.float64)
        case "negative":
            sums = {each: -tensor if each != "examples" else tensor for each, tensor in sums.items()}
    with pytest.raises(CalibrationError):
        statistic.validate(sums)


def test_negative_variance_and_indefinite_gram_matrices_are_refused() -> None:
    sums = collect_sums(BatchNormMoments(), MODEL, STATE, [DATA])
    sums["norm1.squares"] = sums["norm1.sum"].square() / sums["norm1.count"] * 0.9
    with pytest.raises(CalibrationError, match="norm1: negative variance"):
        BatchNormMoments().validate(sums)
    sums = collect_sums(GramMatrices(), MODEL, STATE, [DATA])
    sums["hidden.weight.gram"][0] -= 2 * torch.diag(sums["hidden.weight.gram"][0].diagonal())
    with pytest.raises(CalibrationError, match=r"hidden\.weight\.gram is not positive semi-definite"):
        GramMatrices().validate(sums)
    sums = collect_sums(GramMatrices(), MODEL, STATE, [DATA])
    sums["head.weight.gram"][0, 0, 1] += 5
    with pytest.raises(CalibrationError, match=r"head\.weight\.gram is not symmetric"):
        GramMatrices().validate(sums)


@pytest.mark.parametrize("model", [ConvNet(), AttentionNet(), mlp()], ids=["conv", "attention", "mlp"])
def test_valid_sums_pass_in_float32_too(model: nn.Module) -> None:
    shape = {ConvNet: (2, 6, 6), AttentionNet: (5, 8)}.get(type(model), (6,))
    state = {key: tensor.float() for key, tensor in random_state(model, 6).items()}
    inputs, labels = examples(shape, 5, 7)
    sums = collect_sums(GramMatrices(), model, state, [(inputs.float(), labels)])
    GramMatrices().validate({key: tensor.float() for key, tensor in sums.items()})
