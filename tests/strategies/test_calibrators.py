"""Federated calibration: real queries to real ClientApps, compared with the same thing done centrally."""

import math

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import nn

from fedrebasin import (
    Identity,
    PermutationSpec,
    RebasinError,
    collect_sums,
    evaluate,
    fit_temperature,
    recalibrate_batch_norm,
    regression_mean,
)
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    BatchNormRecalibration,
    FedMergeMany,
    FedRebasin,
    FedRegMean,
    FedRidgeHead,
    FedWideAvg,
    HeadRegression,
    RegMean,
    Repair,
    SequentialRegression,
    StatisticsMod,
    TemperatureCalibration,
    register,
)
from fedrebasin.sums import GramMatrices, logits_of

CLASSES, FEATURES, HIDDEN = 3, 6, 12
EXAMPLE = torch.zeros(1, FEATURES)


def make_model(norm=True):
    layers = [nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN)] if norm else [nn.Linear(FEATURES, HIDDEN)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def data(seed, count):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0)) * 2
    return centres[labels] + torch.randn(count, FEATURES, generator=generator), labels


def train(seed, inputs, labels, norm, steps=120):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model(norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


COUNTS = [80, 33, 57]


@pytest.fixture(scope="module", params=[True, False], ids=["BatchNorm", "no norm"])
def clients(request):
    norm = request.param
    parts = [data(seed + 1, count) for seed, count in enumerate(COUNTS)]
    return norm, parts, [train(i, *part, norm) for i, part in enumerate(parts)]


def make_app(clients, as_mod=False, min_examples=1, batch_size=1000):
    norm, parts, states = clients

    def model(context: Context):
        return make_model(norm)

    def batches(context: Context):
        inputs, labels = parts[context.node_config["partition-id"]]
        return list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))

    mods = [StatisticsMod(model, batches, min_examples)] if as_mod else []
    app = ClientApp(mods=mods)

    @app.train()
    def _(message, context):
        node = context.node_config["partition-id"]
        content = {
            "arrays": ArrayRecord(states[node]),
            "metrics": MetricRecord({"num-examples": len(parts[node][0])}),
        }
        return Message(RecordDict(content), reply_to=message)

    if not as_mod:
        register(app, model=model, batches=batches, min_examples=min_examples)
    return app


def run(strategy, clients, **options):
    grid = InlineGrid(make_app(clients, **options), len(COUNTS))
    start = make_model(clients[0]).state_dict()
    result = strategy.start(grid, ArrayRecord(dict(start)), num_rounds=1)
    return result.arrays.to_torch_state_dict(), result.train_metrics_clientapp[1]


def inner():
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=len(COUNTS), min_available_nodes=len(COUNTS))


def spec_of(clients):
    return PermutationSpec.trace(make_model(clients[0]), EXAMPLE)


def everything(clients):
    return torch.cat([part[0] for part in clients[1]]), torch.cat([part[1] for part in clients[1]])


@pytest.mark.parametrize("as_mod", [False, True])
def test_federated_temperature_is_the_central_one(clients, as_mod):
    strategy = Aligned(
        inner(),
        aligner=Identity(),
        calibrators=[TemperatureCalibration()],
        query_type="train" if as_mod else "query.fedrebasin",
    )
    state, metrics = run(strategy, clients, as_mod=as_mod)
    logits, labels = logits_of(make_model(clients[0]), state, [everything(clients)])
    central = fit_temperature(logits, labels)
    assert metrics["beta"] == pytest.approx(central.beta, rel=1e-4)
    assert strategy.beta == metrics["beta"]
    assert metrics["rebasin-nll-calibrated"] == pytest.approx(central.nll_after, rel=1e-6)


def test_server_data_give_the_same_temperature(clients):
    model = make_model(clients[0])
    state, metrics = run(FedWideAvg(inner(), temperature=TemperatureCalibration(model, [everything(clients)])), clients)
    assert metrics["beta"] == pytest.approx(fit_temperature(*logits_of(model, state, [everything(clients)])).beta)


def test_federated_batch_norm_is_the_central_one(clients):
    plain, _ = run(FedRebasin(inner(), spec=spec_of(clients)), clients)
    strategy = FedRebasin(inner(), spec=spec_of(clients), calibrators=[BatchNormRecalibration()])
    state, _ = run(strategy, clients)
    central = recalibrate_batch_norm(make_model(clients[0]), plain, [everything(clients)[0]])
    for key in plain:
        assert torch.allclose(state[key].double(), central[key].double(), rtol=1e-5, atol=1e-6), key


def test_federated_regmean_is_the_central_one(clients):
    model, spec = make_model(clients[0]), spec_of(clients)
    strategy = FedMergeMany(inner(), spec=spec, calibrators=[RegMean()])
    state, metrics = run(strategy, clients)
    merge = strategy.aligner(spec, clients[2], COUNTS)
    statistic = GramMatrices()
    grams = [
        statistic.finish(collect_sums(statistic, model, state, [part]))
        for state, part in zip(merge.states, clients[1], strict=True)
    ]
    central = regression_mean(merge.states, grams, merge.merged)
    for key in state:
        if state[key].is_floating_point():
            assert torch.allclose(state[key], central[key].to(state[key].dtype), rtol=1e-4, atol=1e-5), key
    assert metrics["rebasin-regmean-left-out"] == 0.0


MAKERS = {
    "RegMean": lambda model: RegMean(),
    "SequentialRegression": lambda model: SequentialRegression(model, EXAMPLE),
    "HeadRegression": lambda model: HeadRegression(model, EXAMPLE),
    "Repair": lambda model: Repair(model, EXAMPLE),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_calibrators_do_not_make_the_merge_worse(clients, make):
    model, spec = make_model(clients[0]), spec_of(clients)
    batches = [everything(clients)]
    norms = [BatchNormRecalibration()] if clients[0] else []
    plain, _ = run(FedMergeMany(inner(), spec=spec, calibrators=norms), clients)
    strategy = FedMergeMany(inner(), spec=spec, calibrators=[make(model), *norms, TemperatureCalibration()])
    state, metrics = run(strategy, clients)
    assert not any(key.endswith("failed") for key in metrics), metrics
    before, after = evaluate(model, plain, batches), evaluate(model, state, batches, metrics["beta"])
    assert after.accuracy >= before.accuracy - 0.06
    assert after.accuracy > 0.7


def test_named_strategies_are_an_alignment_and_a_calibrator(clients):
    model, spec = make_model(clients[0]), spec_of(clients)
    norms = [BatchNormRecalibration()]
    pairs = [
        (
            FedRegMean(inner(), spec=spec, calibrators=norms),
            FedMergeMany(inner(), spec=spec, calibrators=[RegMean(), *norms]),
        ),
        (
            FedRidgeHead(inner(), spec=spec, model=model, example_inputs=EXAMPLE, calibrators=norms),
            FedRebasin(
                inner(), spec=spec, calibrators=[*norms, HeadRegression(model, EXAMPLE), TemperatureCalibration()]
            ),
        ),
        (FedWideAvg(inner()), Aligned(inner(), aligner=Identity(), calibrators=[TemperatureCalibration()])),
    ]
    for named, by_hand in pairs:
        (one, metrics), (other, expected) = run(named, clients), run(by_hand, clients)
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert metrics.get("beta") == expected.get("beta") == named.beta
        assert ("beta" in metrics) != isinstance(named, FedRegMean)


def test_what_rewrites_weights_refuses_a_strategy_that_keeps_its_own_copy(clients):
    model, spec = make_model(clients[0]), spec_of(clients)
    with pytest.raises(RebasinError, match="RegMean rewrites weights after FedAdam"):
        FedRegMean(FedAdam(), spec=spec)
    with pytest.raises(RebasinError, match="HeadRegression rewrites weights after FedAdam"):
        FedRidgeHead(FedAdam(), spec=spec, model=model, example_inputs=EXAMPLE)
    FedWideAvg(FedAdam())


def test_a_client_that_cannot_answer_is_left_out(clients):
    strategy = FedWideAvg(inner(), temperature=TemperatureCalibration())
    _, metrics = run(strategy, clients, min_examples=50)  # the second client has 33
    assert metrics["rebasin-temperature-left-out"] == 1.0
    assert math.isfinite(metrics["beta"])


def test_without_any_answer_the_model_stands_and_the_metrics_say_so(clients):
    plain, _ = run(FedMergeMany(inner(), spec=spec_of(clients)), clients)
    strategy = FedMergeMany(inner(), spec=spec_of(clients), calibrators=[RegMean(), TemperatureCalibration()])
    state, metrics = run(strategy, clients, min_examples=10_000)
    assert metrics["rebasin-reg-mean-failed"] == 1.0
    assert metrics["rebasin-temperature-calibration-failed"] == 1.0
    for key in plain:
        assert torch.equal(plain[key], state[key])


def test_regmean_needs_aligned_models():
    with pytest.raises(RebasinError, match="RegMean needs aligned models: use an aligner other than Identity"):
        FedWideAvg(inner(), temperature=RegMean())


def test_data_without_an_error_do_not_drive_beta_to_infinity(clients):
    """The loss of a model without errors falls for ever; one typical error among all examples stops it."""
    norm, parts, states = clients
    model = make_model(norm)
    sure = [
        (inputs, logits_of(model, state, [(inputs, labels)])[0].argmax(1))
        for (inputs, labels), state in zip(parts, [states[0]] * len(parts), strict=True)
    ]
    strategy = FedWideAvg(inner(), temperature=TemperatureCalibration())
    _, metrics = run(strategy, (norm, sure, [states[0]] * len(parts)))
    assert 0 < metrics["beta"] < 100
    assert metrics["rebasin-nll-calibrated"] < 0.1
