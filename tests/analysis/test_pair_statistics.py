"""What clients sum over a pair of models: the sums of the parts are those of the whole, and the central functions'."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedrebasin import CalibrationError, MergeError, collect_sums
from fedrebasin.analysis import (
    HalfwayConnectivity,
    PathEvaluation,
    commutativity,
    feature_connectivity,
    loss_barrier,
    reciprocal_orthogonality,
)
from fedrebasin.sums import add_sums

from .nets import make_batches, make_cnn, make_mlp, random_state

MODELS = {
    "mlp": (make_mlp, (5,)),
    "cnn": (make_cnn, (1, 4, 4)),
    "one layer": (lambda: nn.Linear(5, 3), (5,)),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(5, 4)), nn.ReLU(), weight_norm(nn.Linear(4, 3))), (5,)),
}


def setting(name="mlp"):
    build, shape = MODELS[name]
    model = build()
    return model, random_state(model, 0), random_state(model, 1), make_batches(shape=shape)


def statistics(b):
    return {"halfway": HalfwayConnectivity(b), "path": PathEvaluation(b, 4)}


def uneven(batches):
    """One client has most of the data, one a single batch of one example, one none."""
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return [[(inputs[:15], labels[:15]), (inputs[15:20], labels[15:20])], [], [(inputs[20:], labels[20:])]]


@pytest.mark.parametrize("which", ["halfway", "path"])
@pytest.mark.parametrize("name", MODELS)
def test_sums_of_parts_are_the_sums_of_the_whole_in_any_order(name, which):
    model, a, b, batches = setting(name)
    statistic = statistics(b)[which]
    whole = collect_sums(statistic, model, a, batches)
    parts = [collect_sums(statistic, model, a, part) for part in uneven(batches)]
    for order in (parts, parts[::-1]):
        total = {}
        for part in order:
            total = add_sums(total, part)
        assert set(total) == set(whole)
        for key in whole:
            torch.testing.assert_close(total[key], whole[key], rtol=1e-12, atol=1e-12)
        statistic.validate(total)
        assert statistic.finish(total) == statistic.finish(dict(reversed(total.items())))
    assert all(tensor.dtype == torch.float64 for tensor in whole.values())


@pytest.mark.parametrize("name", MODELS)
def test_the_halfway_statistic_is_what_the_central_functions_say(name):
    model, a, b, batches = setting(name)
    found = HalfwayConnectivity(b).finish(collect_sums(HalfwayConnectivity(b), model, a, batches))
    assert found.features == feature_connectivity(model, a, b, batches)
    assert found.orthogonality == reciprocal_orthogonality(model, a, b, batches)
    for own, central in zip(found.distances, commutativity(model, a, b, batches), strict=True):
        assert (own.layer, own.dist_com, own.dist_h) == (central.layer, central.dist_com, central.dist_h)
        assert (own.residual, own.features) == (central.residual, central.features)


@pytest.mark.parametrize("points", [2, 5])
def test_the_path_statistic_is_the_central_barrier(points):
    model, a, b, batches = setting("cnn")
    central = loss_barrier(model, a, b, batches, points)
    found = PathEvaluation(b, points).finish(collect_sums(PathEvaluation(b, points), model, a, batches))
    assert found.losses == pytest.approx(central.losses, rel=1e-12)
    assert found.value == pytest.approx(central.value, rel=1e-9)
    assert (found.lams, found.accuracies, found.betas) == (central.lams, central.accuracies, central.betas)


def test_nothing_is_changed():
    model, a, b, batches = setting("cnn")
    model.train()
    before = {key: tensor.clone() for key, tensor in (model.state_dict() | a).items()}
    for statistic in statistics(b).values():
        collect_sums(statistic, model, a, batches)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in (model.state_dict() | a).items())


def test_a_statistic_of_no_data_or_of_models_that_differ_is_refused():
    model, a, b, batches = setting()
    for statistic in statistics(b).values():
        assert collect_sums(statistic, model, a, []) == {}
        with pytest.raises(CalibrationError, match="no examples"):
            statistic.finish({})
    for statistic in statistics({**b, "0.bias": torch.zeros(3)}).values():
        with pytest.raises(MergeError, match=r"0\.bias: shapes"):
            collect_sums(statistic, model, a, batches)
    for points in (1, 10**9):
        with pytest.raises(CalibrationError, match="points"):
            PathEvaluation(b, points)


def spoiled(sums, key, position, value):
    tensor = sums[key].clone()
    tensor[position] = value
    return {**sums, key: tensor}


HALFWAY = {
    "not finite": (lambda s: spoiled(s, "1.0.features", (0, 0, 1), float("nan")), "not finite"),
    "missing": (lambda s: {k: t for k, t in s.items() if k != "2.2.features"}, "are missing"),
    "all missing": (lambda s: {"examples": s["examples"]}, "are missing"),
    "no examples": (lambda s: {**s, "examples": torch.tensor(0.0)}, "0 examples"),
    "unknown part": (lambda s: {**s, "1.0.more": torch.ones(6)}, "'1.0.more' was not asked for"),
    "unknown layer": (lambda s: {**s, "4.9.features": s["1.0.features"]}, "'4.9.features' was not asked for"),
    "no depth": (lambda s: {**s, "x.0.features": s["1.0.features"]}, "was not asked for"),
    "second depth": (lambda s: {**s, "4.0.features": s["1.0.features"]}, "two depths"),
    "other depth": (
        lambda s: {k: t for k, t in s.items() if k != "1.0.reciprocity"} | {"2.0.reciprocity": s["1.0.reciprocity"]},
        "no features",
    ),
    "shape": (lambda s: {**s, "1.0.commutation": torch.ones(7)}, "shape"),
    "count too large": (lambda s: spoiled(s, "1.0.features", (0, 3, 0), 1e30), "count"),
    "count zero": (lambda s: spoiled(s, "2.2.reciprocity", (0, 0), 0.0), "count"),
    "cosine": (
        lambda s: spoiled(s, "1.0.features", (0, 1, slice(1, 3)), torch.tensor([50.0, 200.0])),
        "cosine beyond 1",
    ),
    "variance": (lambda s: spoiled(s, "1.0.features", (0, 3, 2), 0.0), "negative variance"),
    "length": (lambda s: spoiled(s, "1.0.features", (0, 4, 1), -1e-3), "negative length"),
    "ratio": (lambda s: spoiled(s, "2.2.reciprocity", (0, 1), -1e-3), "negative length"),
    "square": (lambda s: spoiled(s, "2.2.commutation", 3, -1.0), "negative square"),
    "distance": (lambda s: spoiled(s, "2.2.commutation", 0, 1e12), "longer than both"),
}


@pytest.mark.parametrize("damage", HALFWAY)
def test_absurd_halfway_sums_are_refused(damage):
    model, a, b, batches = setting()
    statistic = HalfwayConnectivity(b)
    sums = collect_sums(statistic, model, a, batches)
    statistic.validate(sums)
    spoil, message = HALFWAY[damage]
    with pytest.raises(CalibrationError, match=message) as caught:
        statistic.validate(spoil(sums))
    assert "\n" not in str(caught.value)


PATH = {
    "not finite": (lambda s: spoiled(s, "loss", 0, float("inf")), "not finite"),
    "shape": (lambda s: {**s, "loss": torch.ones(5)}, "shape"),
    "missing": (lambda s: {k: t for k, t in s.items() if k != "correct"}, "missing"),
    "unknown": (lambda s: {**s, "more": torch.ones(1)}, "not asked for"),
    "loss": (lambda s: spoiled(s, "loss", 1, -1.0), "negative loss"),
    "correct": (lambda s: spoiled(s, "correct", 1, 1e6), "more correct"),
    "labels": (lambda s: {**s, "labels": torch.tensor(1e30)}, "labels: 1e\\+30 values cannot come of"),
    "no labels": (lambda s: {**s, "labels": torch.tensor(0.0), "correct": 0 * s["correct"]}, "0 labels"),
}


@pytest.mark.parametrize("damage", PATH)
def test_absurd_path_sums_are_refused(damage):
    model, a, b, batches = setting()
    statistic = PathEvaluation(b, 4)
    sums = collect_sums(statistic, model, a, batches)
    statistic.validate(sums)
    spoil, message = PATH[damage]
    with pytest.raises(CalibrationError, match=message):
        statistic.validate(spoil(sums))
