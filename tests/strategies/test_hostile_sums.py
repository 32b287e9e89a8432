"""Sums that no data can have: the client that sends them counts as one that sends none."""

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin import MergeMany, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    ActivationAlignment,
    Aligned,
    BatchNormRecalibration,
    HeadRegression,
    RegMean,
    Repair,
    SequentialRegression,
    StatisticsMod,
    TemperatureCalibration,
)

CLIENTS, HOSTILE, FEATURES, HIDDEN, CLASSES = 4, 2, 5, 6, 4
EXAMPLE = torch.zeros(2, FEATURES)


def make_model():
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    ).eval()


SPEC = PermutationSpec.trace(make_model(), EXAMPLE)


def state_of(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model().state_dict()


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, FEATURES, generator=generator), torch.arange(40) % CLASSES


def make_app(spoil):
    mod = StatisticsMod(lambda context: make_model(), lambda context: [data(context.node_config["partition-id"])])
    app = ClientApp()

    @app.train()
    def _(message, context):
        arrays = ArrayRecord(state_of(context.node_config["partition-id"]))
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 40})}), reply_to=message)

    @app.query("fedrebasin")
    def _(message, context):
        reply = mod.answer(message, context)
        if context.node_config["partition-id"] != HOSTILE:
            return reply
        sums = spoil(dict(reply.content["sums"].to_torch_state_dict()))
        if sums is None:
            return Message(Error(100, "no"), reply_to=message)
        return Message(RecordDict({"sums": ArrayRecord(sums), "metrics": MetricRecord({})}), reply_to=message)

    return app


def run(calibrator, spoil):
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    strategy = Aligned(inner, spec=SPEC, aligner=MergeMany(), calibrators=[calibrator])
    grid = InlineGrid(make_app(spoil), CLIENTS)
    result = strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=1)
    return result.arrays.to_torch_state_dict(), dict(result.train_metrics_clientapp[1])


def first_with_dimensions(sums):
    """The name of an entry that is more than a number."""
    return next(key for key, tensor in sums.items() if tensor.dim())


def not_a_number(sums):
    sums[first_with_dimensions(sums)].flatten()[0] = float("nan")
    return sums


def negative(sums):
    """Negative squares, negative losses, a matrix that is not positive semi-definite."""
    return {key: tensor if key == "examples" else -tensor - 1 for key, tensor in sums.items()}


def too_small(sums):
    return {key: tensor[..., 1:] if tensor.dim() else tensor for key, tensor in sums.items()}


def too_many(sums):
    """Consistent among themselves, for a layer with twice as many blocks."""
    return {key: torch.cat([tensor, tensor]) if tensor.dim() == 3 else tensor for key, tensor in sums.items()} | {
        "more": torch.ones(2)
    }


def one_missing(sums):
    del sums[first_with_dimensions(sums)]
    return sums


def no_examples(sums):
    return sums | {"examples": torch.tensor(0.0)}


CALIBRATORS = {
    "temperature": TemperatureCalibration(),
    "batch-norm": BatchNormRecalibration(),
    "regmean": RegMean(),
    "seqreg": SequentialRegression(make_model(), EXAMPLE),
    "head": HeadRegression(make_model(), EXAMPLE),
    "repair": Repair(make_model(), EXAMPLE),
    "activation-alignment": ActivationAlignment(make_model(), EXAMPLE),
}


@pytest.fixture(scope="module")
def without():
    """What each calibrator finds when the client refuses to answer."""
    return {name: run(calibrator, lambda sums: None) for name, calibrator in CALIBRATORS.items()}


@pytest.mark.parametrize("spoil", [not_a_number, negative, too_small, too_many, one_missing, no_examples])
@pytest.mark.parametrize("name", CALIBRATORS)
def test_absurd_sums_are_as_good_as_none(without, name, spoil):
    state, metrics = run(CALIBRATORS[name], spoil)
    assert metrics[f"rebasin-{name}-left-out"] == 1.0
    assert not any(key.endswith("failed") for key in metrics)
    for key, expected in without[name][0].items():
        assert torch.allclose(state[key], expected, atol=1e-6), key


@pytest.mark.parametrize("name", CALIBRATORS)
def test_good_sums_are_not_left_out(name):
    _, metrics = run(CALIBRATORS[name], lambda sums: sums)
    assert metrics[f"rebasin-{name}-left-out"] == 0.0


@pytest.mark.parametrize("partition", [0, 1])
def test_a_first_answer_for_other_layers_does_not_decide_for_the_others(monkeypatch, partition):
    monkeypatch.setattr("tests.strategies.test_hostile_sums.HOSTILE", partition)
    _, metrics = run(RegMean(), one_missing)
    assert metrics["rebasin-regmean-left-out"] == 1.0
