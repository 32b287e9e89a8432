from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedrebasin import MergeError, average, collect_sums, regression_mean
from fedrebasin.calibration import RegressionMean
from fedrebasin.sums import GramMatrices, add_sums
from tests.calibration.nets import AttentionNet, ConvNet, batches, examples, mlp, random_state, split

NETS = {"conv": (ConvNet(), (2, 6, 6)), "attention": (AttentionNet(), (5, 8)), "mlp": (mlp(), (6,))}


def grams_of(model: nn.Module, state: dict[str, Tensor], parts: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return GramMatrices().finish(collect_sums(GramMatrices(), model, state, parts))


def test_one_linear_layer_in_closed_form() -> None:
    # With all correlations kept, the merged map is the least-squares fit to each client's outputs on its own data.
    model = nn.Sequential(nn.Linear(3, 2))
    states = [random_state(model, seed) for seed in range(2)]
    inputs = [examples((3,), 20, seed)[0] for seed in range(2)]
    grams = [grams_of(model, state, [(x, x[:, 0].long())]) for state, x in zip(states, inputs, strict=True)]
    merged = regression_mean(states, grams, average(states), correlation=1.0, ridge=0.0)
    rows = torch.cat([torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1) for x in inputs])
    wanted = torch.cat([x @ s["0.weight"].T + s["0.bias"] for s, x in zip(states, inputs, strict=True)])
    solution = torch.linalg.lstsq(rows, wanted).solution
    assert torch.allclose(merged["0.weight"], solution[:-1].T)
    assert torch.allclose(merged["0.bias"], solution[-1])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_equal_models_stay_as_they_are(name: str, correlation: float) -> None:
    model, shape = NETS[name]
    state = random_state(model, 1)
    grams = [grams_of(model, state, [examples(shape, 30, seed)]) for seed in range(3)]
    merged = regression_mean([state] * 3, grams, state, correlation)
    for key in state:
        assert torch.allclose(merged[key].double(), state[key].double(), rtol=1e-6, atol=1e-6), key


@pytest.mark.parametrize("name", NETS)
def test_the_order_of_clients_does_not_matter_and_the_rest_is_the_average(name: str) -> None:
    model, shape = NETS[name]
    states = [random_state(model, seed) for seed in range(3)]
    grams = [grams_of(model, state, [examples(shape, 40, 5)]) for state in states]
    mean = average(states)
    merged = regression_mean(states, grams, mean)
    turned = regression_mean(states[::-1], grams[::-1], mean)
    solved = {key for key in states[0] if any(key.startswith(weight[:-6]) for weight in grams[0])}
    for key in mean:
        assert torch.allclose(merged[key].double(), turned[key].double(), rtol=1e-8, atol=1e-10)
        assert key in solved or merged[key] is mean[key]
    assert any(not torch.allclose(merged[key], mean[key]) for key in grams[0])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.0, 1e-6, 1e-2]))
def test_no_other_map_is_closer_to_the_clients(seed: int, ridge: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    states = [random_state(model, seed + i) for i in range(3)]
    data = [examples((4,), 15, seed + i)[0] for i in range(3)]
    grams = [grams_of(model, state, [(x, x[:, 0].long())]) for state, x in zip(states, data, strict=True)]
    merged = regression_mean(states, grams, average(states), correlation=1.0, ridge=ridge)

    def distance(weight: Tensor, bias: Tensor) -> float:
        return sum(
            float((x @ (weight - s["0.weight"]).T + bias - s["0.bias"]).square().sum())
            for s, x in zip(states, data, strict=True)
        )

    mean = average(states)
    best = distance(merged["0.weight"], merged["0.bias"])
    assert best <= distance(mean["0.weight"], mean["0.bias"]) + 1e-9
    if ridge == 0:
        generator = torch.Generator().manual_seed(seed)
        other = merged["0.weight"] + 1e-3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
        assert best <= distance(other, merged["0.bias"])


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_federated_weights_are_the_central_ones(clients: int) -> None:
    # Each of two models has its data on several nodes: their sums give what its data in one place give.
    model = ConvNet()
    states = [{k: t.float() if t.is_floating_point() else t for k, t in random_state(model, s).items()} for s in (1, 2)]
    central, federated = [], []
    for seed, state in enumerate(states):
        inputs, labels = examples((2, 6, 6), 70, seed)
        data = (inputs.float(), labels)
        central.append(grams_of(model, state, [data]))
        total: dict[str, Tensor] = {}
        for part in split(data, clients, seed):
            total = add_sums(total, collect_sums(GramMatrices(), model, state, batches(part, 9)))
        federated.append(GramMatrices().finish(total))
    mean = average(states)
    one, other = (regression_mean(states, grams, mean) for grams in (central, federated))
    for key in mean:
        assert torch.allclose(one[key], other[key], rtol=1e-5, atol=1e-5), key


def test_what_the_data_leave_open_is_the_average() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    states = [random_state(model, seed) for seed in range(2)]
    inputs = examples((3,), 20, 1)[0]
    inputs[:, 1] = 0.0
    grams = [grams_of(model, state, [(inputs, inputs[:, 0].long())]) for state in states]
    mean = average(states)
    merged = regression_mean(states, grams, mean)
    assert torch.allclose(merged["0.weight"][:, 1], mean["0.weight"][:, 1])
    with pytest.raises(MergeError, match=r"0\.weight: the summed Gram matrix is singular; give a positive ridge"):
        regression_mean(states, grams, mean, ridge=0.0)
    assert torch.allclose(regression_mean(states, [{}, {}], mean)["0.weight"], mean["0.weight"])


def test_diagonals_weigh_by_the_size_of_each_feature() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    states = [{"0.weight": torch.tensor([[1.0, 1.0]])}, {"0.weight": torch.tensor([[3.0, 3.0]])}]
    grams = [{"0.weight": torch.tensor([[1.0, 3.0, 1.0]])}, {"0.weight": torch.tensor([[1.0, 1.0, 1.0]])}]
    merged = regression_mean(states, grams, average(states), ridge=0.0)
    assert merged["0.weight"].tolist() == [[2.0, 1.5]]
    assert grams[0]["0.weight"].tolist() == [[1.0, 3.0, 1.0]]
    whole = [{"0.weight": torch.diag_embed(gram["0.weight"]) + 0.5} for gram in grams]
    scaled = regression_mean(states, whole, average(states), correlation=0.0, ridge=0.0)
    assert torch.allclose(scaled["0.weight"], torch.tensor([[2.0, (3.5 + 3 * 1.5) / 5.0]]))
    model.load_state_dict(merged)


def test_wrong_input_is_refused() -> None:
    model = mlp()
    states = [random_state(model, seed) for seed in range(2)]
    grams = [grams_of(model, state, [examples((6,), 10, 1)]) for state in states]
    mean = average(states)
    with pytest.raises(MergeError, match="fewer than 2"):
        regression_mean(states, grams[:1], mean)
    with pytest.raises(MergeError, match="more than 1"):
        regression_mean(states[:1], grams, mean)
    with pytest.raises(MergeError, match=r"0\.weight: a Gram matrix of shape"):
        regression_mean(states, [{"0.weight": torch.eye(3)[None]}] * 2, mean)
    with pytest.raises(MergeError, match=r"different weights: 4\.weight"):
        regression_mean(states, [grams[0], {key: grams[1][key] for key in ("0.weight", "2.weight")}], mean)
    merge = RegressionMean()
    merge.add(states[0], grams[0])
    whole = merge.finish(mean)
    with pytest.raises(MergeError, match=r"4\.weight: a Gram matrix of shape \(4, 13, 13\) does not fit the other"):
        merge.add(states[1], {**grams[1], "4.weight": grams[1]["4.weight"].expand(4, -1, -1)})
    assert all(torch.equal(tensor, whole[key]) for key, tensor in merge.finish(mean).items())
    with pytest.raises(MergeError, match="no clients"):
        RegressionMean().finish(mean)
    with pytest.raises(MergeError, match="correlation 2"):
        RegressionMean(correlation=2)
