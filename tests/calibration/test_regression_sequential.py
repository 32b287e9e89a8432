from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import (
    CalibrationError,
    MergeError,
    Permutation,
    PermutationSpec,
    average,
    collect_sums,
    sequential_regression,
)
from fedrebasin.calibration import regressed_layer
from fedrebasin.sums import LayerRegression, add_sums, logits_of, unit_order
from tests.calibration.nets import AttentionNet, ConvNet, batches, examples, mlp, random_state

NETS = {"conv": (ConvNet(norm=False), (2, 6, 6)), "attention": (AttentionNet(), (5, 8)), "mlp": (mlp(), (6,))}


@pytest.mark.parametrize("name", NETS)
def test_equal_models_stay_as_they_are(name: str) -> None:
    model, shape = NETS[name]
    state = random_state(model, 1)
    merged = sequential_regression(model, [state] * 2, [[examples(shape, 30, seed)] for seed in range(2)], state)
    for key in state:
        assert torch.allclose(merged[key], state[key], rtol=1e-6, atol=1e-6), key


def test_a_linear_net_with_one_teacher_is_learnt_exactly() -> None:
    # The features of the start differ from the teacher's, but span the same space: the end is the teacher's function.
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    teacher, start = random_state(model, 1), random_state(model, 2)
    data = [examples((4,), 40, 3)]
    merged = sequential_regression(model, [teacher], [data], start, ridge=0.0 + 1e-12)
    assert torch.allclose(logits_of(model, merged, data)[0], logits_of(model, teacher, data)[0], atol=1e-6)


def test_the_sums_do_not_depend_on_the_order_of_the_clients_units() -> None:
    model = mlp()
    merged, own = random_state(model, 1), random_state(model, 2)
    data = batches(examples((6,), 30, 3), 8)
    spec = PermutationSpec.trace(model, torch.zeros(2, 6))
    permutation = Permutation.random(spec, torch.Generator().manual_seed(1))
    aligned = collect_sums(LayerRegression("2.weight", permutation.apply(own)), model, merged, data)
    raw = collect_sums(LayerRegression("2.weight", own), model, merged, data)
    order = unit_order(permutation, own, ["2.weight"])["2.weight"]
    assert torch.allclose(aligned["cross"], raw["cross"][..., order])
    assert torch.allclose(aligned["gram"], raw["gram"])


def test_a_regressed_layer_is_the_least_squares_fit_to_the_clients() -> None:
    model = mlp()
    merged, clients = random_state(model, 0), [random_state(model, seed) for seed in (1, 2)]
    data = [examples((6,), 30, seed) for seed in (3, 4)]
    sums: dict[str, Tensor] = {}
    for own, part in zip(clients, data, strict=True):
        sums = add_sums(sums, collect_sums(LayerRegression("0.weight", own), model, merged, batches(part, 8)))
    fitted = regressed_layer(merged, "0.weight", sums, ridge=0.0)
    inputs = torch.cat([torch.cat([x, torch.ones_like(x[:, :1])], 1) for x, _ in data])
    wanted = torch.cat([x @ own["0.weight"].T + own["0.bias"] for own, (x, _) in zip(clients, data, strict=True)])
    solution = torch.linalg.lstsq(inputs, wanted).solution
    assert torch.allclose(fitted["0.weight"], solution[:-1].T)
    assert torch.allclose(fitted["0.bias"], solution[-1])
    assert fitted["2.weight"] is merged["2.weight"]


def test_wrong_input_is_refused() -> None:
    model = mlp()
    states = [random_state(model, seed) for seed in range(2)]
    data = [examples((6,), 10, 1)]
    with pytest.raises(MergeError, match="2 models and 1 clients' data"):
        sequential_regression(model, states, [data], average(states))
    with pytest.raises(MergeError, match="no client has data"):
        sequential_regression(model, states, [[], []], average(states))
    with pytest.raises(CalibrationError, match="does not multiply data with this weight"):
        collect_sums(LayerRegression("absent", states[0]), model, states[0], data)
    sums = collect_sums(LayerRegression("2.weight", states[0]), model, states[1], data)
    LayerRegression("2.weight", states[0]).validate(sums)
    with pytest.raises(CalibrationError, match=r"4\.weight has no sums of shape"):
        LayerRegression("4.weight", states[0]).validate(sums)
    with pytest.raises(MergeError, match="singular"):
        regressed_layer(
            states[0],
            "0.weight",
            collect_sums(
                LayerRegression("0.weight", states[1]), model, states[0], [(torch.zeros(5, 6).double(), torch.zeros(5))]
            ),
            ridge=0.0,
        )
