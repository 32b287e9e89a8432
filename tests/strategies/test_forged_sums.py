"""One client of six forges its sums: with a robust strategy inside it is left out, or counts for little."""

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from fedrebasin.strategies.round import summed
from fedrebasin.strategies.round.agreement import LeaveOneOut, Means, contradicting
from fedrebasin.strategies.round.proportion import PER_EXAMPLE, VOTE, in_proportion, votes
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum
from torch import nn

from fedrebasin import MergeMany, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    ActivationAlignment,
    Aligned,
    BarrierProbe,
    BatchNormRecalibration,
    HeadRegression,
    RegMean,
    Repair,
    SequentialRegression,
    StatisticsMod,
    TemperatureCalibration,
)
from fedrebasin.sums import scaled

CLIENTS, FORGER, FEATURES, HIDDEN, CLASSES, COUNT = 6, 2, 6, 24, 4, 240
EXAMPLE = torch.zeros(2, FEATURES)
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
INNER = {
    "FedMedian": lambda: FedMedian(**COMMON),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(**COMMON, beta=0.2),
    "Krum": lambda: Krum(**COMMON, num_malicious_nodes=1),
    "FedAvg": lambda: FedAvg(**COMMON),
}


class Trusting(FedMedian):
    robust = False


def make_model():
    return nn.Sequential(
        *(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
        *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)),
    ).eval()


SPEC = PermutationSpec.trace(make_model(), EXAMPLE)


def state_of(client):
    """A teacher with a little noise: all clients' models are nearly the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = make_model().state_dict()
    generator = torch.Generator().manual_seed(client)
    return {
        key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for key, tensor in teacher.items()
    } | {"1.running_var": teacher["1.running_var"]}


def data(client):
    """Labels that the teacher gives, with some noise, so that nobody is sure of everything."""
    generator = torch.Generator().manual_seed(100 + client)
    inputs = 1 + torch.randn(COUNT, FEATURES, generator=generator)
    logits = torch.func.functional_call(make_model(), state_of(0), (inputs,))
    noise = torch.rand(logits.shape, generator=generator)
    return inputs, (20 * (logits - logits.mean(0)) - 0.3 * noise.log().neg().log()).argmax(1)


def turned(sums):
    """The contrary of what the data say, within what some data could have."""
    found = dict(sums)
    for key, tensor in sums.items():
        part = key.rpartition(".")[2]
        if part == "cross":
            found[key] = -tensor if key == "cross" else tensor.roll(1, 1)
        elif part in ("own", "own_squares"):
            found[key] = tensor.roll(1, 0)
        elif part == "classes":
            found[key] = tensor.roll(1, 1)
        elif part == "sum":
            found[key] = -3 * tensor
        elif part == "squares":
            found[key] = 9 * tensor
        elif part == "loss":
            found[key] = 20 * tensor
        elif part == "terms":  # a curve that rises as steeply as it falls for the honest
            found[key] = torch.stack([2 * tensor[0, 0] + 0 * tensor[0], 0 * tensor[1], tensor[2]])
    return found


def rising(sums):
    """Whatever the temperature is, the loss grows with it: the best one would be none."""
    if "terms" not in sums:
        return turned(sums)
    betas = torch.tensor([2.0 ** (exponent / 4) for exponent in range(-32, 49)], dtype=torch.float64)
    labels = sums["labels"]
    return {**sums, "terms": labels * torch.stack([1.4 + 3 * betas, 3 + 0 * betas, 0 * betas])}


def times(k, hidden=False):
    return lambda sums: {key: t if hidden and key == "examples" else k * t for key, t in rising(sums).items()}


def far(sums):
    """Of numbers that are a thousand times as large."""
    return {key: t if key in ("examples", "labels") else 1e6 * t for key, t in rising(sums).items()}


def make_app(forge, examples=COUNT):
    mod = StatisticsMod(lambda context: make_model(), lambda context: [data(context.node_config["partition-id"])])
    app = ClientApp()

    @app.train()
    def _(message, context):
        node = context.node_config["partition-id"]
        claimed = examples if node == FORGER else COUNT
        metrics = MetricRecord({"num-examples": claimed})
        return Message(RecordDict({"arrays": ArrayRecord(state_of(node)), "metrics": metrics}), reply_to=message)

    @app.query("fedrebasin")
    def _(message, context):
        reply = mod.answer(message, context)
        if forge is None or context.node_config["partition-id"] != FORGER:
            return reply
        sums = forge(dict(reply.content["sums"].to_torch_state_dict()))
        return Message(RecordDict({"sums": ArrayRecord(sums), "metrics": MetricRecord({})}), reply_to=message)

    return app


def run(part, inner, forge=None, examples=COUNT):
    calibrators, probes = ([], [part]) if isinstance(part, BarrierProbe) else ([part], [])
    strategy = Aligned(inner, spec=SPEC, aligner=MergeMany(), calibrators=calibrators, probes=probes)
    grid = InlineGrid(make_app(forge, examples), CLIENTS)
    result = strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=1)
    return result.arrays.to_torch_state_dict(), dict(result.train_metrics_clientapp[1])


PARTS = {
    "temperature": TemperatureCalibration(),
    "batch-norm": BatchNormRecalibration(),
    "regmean": RegMean(),
    "seqreg": SequentialRegression(make_model(), EXAMPLE),
    "head": HeadRegression(make_model(), EXAMPLE),
    "repair": Repair(make_model(), EXAMPLE),
    "activation-alignment": ActivationAlignment(make_model(), EXAMPLE),
    "barrier": BarrierProbe(points=3),
}
#: Grams are a weighting of the clients' maps, and moments of turned features are moments of features.
COUNTED = ("regmean",)


def difference(one, other):
    """How far two results are from one another, relative to how large they are."""
    numbers = ("beta", "rebasin-barrier")
    far = [abs(one[1][key] - other[1][key]) / abs(other[1][key]) for key in numbers if other[1].get(key)]
    keys = [key for key, tensor in other[0].items() if tensor.is_floating_point()]
    return max(far + [float((one[0][key] - other[0][key]).norm() / other[0][key].norm()) for key in keys])


@pytest.fixture(scope="module")
def alone():
    return {name: run(part, FedMedian(**COMMON), lambda sums: {}) for name, part in PARTS.items()}


@pytest.mark.parametrize(
    "forge", [times(1), times(1000), times(1000, hidden=True), far], ids=["k=1", "k=1000", "hidden", "far"]
)
@pytest.mark.parametrize("name", PARTS)
def test_a_forger_does_no_more_than_one_who_is_silent(alone, name, forge):
    found = run(PARTS[name], FedMedian(**COMMON), forge)
    assert not any(key.endswith("failed") for key in found[1])
    if name in COUNTED:
        assert difference(found, alone[name]) < 0.3
    else:
        # The reference's own order is asked for and not used: where it is the forger's, nobody is left out.
        assert name == "activation-alignment" or found[1][f"rebasin-{name}-left-out"] == 1.0
        assert difference(found, alone[name]) < 1e-5


@pytest.mark.parametrize("inner", ["FedTrimmedAvg", "Krum"])
@pytest.mark.parametrize("name", ["head", "temperature"])
def test_with_other_robust_strategies_too(name, inner):
    assert run(PARTS[name], INNER[inner](), times(1000))[1][f"rebasin-{name}-left-out"] == 1.0


@pytest.mark.parametrize("name", PARTS)
def test_of_honest_clients_nobody_is_left_out_and_not_a_bit_changes(name):
    found, expected = run(PARTS[name], FedMedian(**COMMON)), run(PARTS[name], Trusting(**COMMON))
    assert found[1][f"rebasin-{name}-left-out"] == 0.0
    if name == "activation-alignment":  # the inner strategy aggregates once more, where the mean was taken
        return
    assert all(torch.equal(found[0][key], tensor) for key, tensor in expected[0].items())
    assert {**found[1], "rebasin-seconds": 0} == {**expected[1], "rebasin-seconds": 0}


def test_models_that_are_aligned_anew_are_aggregated_as_the_inner_strategy_does():
    state, _ = run(PARTS["activation-alignment"], FedMedian(**COMMON))
    median = run(TemperatureCalibration(), FedMedian(**COMMON))[0]  # nothing but the order could have changed
    assert all(torch.allclose(state[key], median[key]) for key in state if key != "1.num_batches_tracked")


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ["head", "seqreg", "regmean", "batch-norm"])
def test_with_fedavg_sums_count_for_what_the_reply_claims(name, hidden):
    """The forger's own data, as if they were a thousand and a million times as many."""

    def result(k):
        return run(
            PARTS[name],
            FedAvg(**COMMON),
            lambda sums: {key: t if hidden and key == "examples" else k * t for key, t in sums.items()},
        )

    usual, more, most = result(PER_EXAMPLE), result(1e3), result(1e5)
    assert difference(more, most) < 1e-3  # one cap for both
    assert difference(most, usual) < 0.05


def answers_of(*sizes):
    return [(at, {"examples": torch.tensor(float(size), dtype=torch.float64)}) for at, size in enumerate(sizes)]


def round_of(robust, *claimed):
    replies = tuple(SimpleNamespace(node_id=at, num_examples=float(claim)) for at, claim in enumerate(claimed))
    return SimpleNamespace(robust=robust, replies=replies)


@dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"


def counted(round_, answers, **options):
    found = in_proportion(round_, iter(answers), lambda at: Plain(), **options)
    return [float(sums["examples"]) for _, sums in found]


def test_examples_are_held_to_those_of_the_reply_or_to_a_vote():
    honest = (10, 20, 30, 40)
    assert counted(round_of(False, *honest), answers_of(*honest)) == list(honest)
    assert counted(round_of(False, 10, 20, 30, 40), answers_of(10, 20, 30, 4e6)) == [10, 20, 30, 40 * PER_EXAMPLE]
    assert counted(round_of(False, 1, 2, 3, 4), answers_of(10, 20, 30, 40)) == list(
        honest
    )  # clients that count batches
    # A robust strategy gives one vote, whatever a reply claims.
    assert counted(round_of(True, 10, 20, 30, 1e9), answers_of(10, 20, 30, 1e9)) == [10, 20, 30, 20 * VOTE]
    assert votes(round_of(True, 10, 20, 30, 1e9)) == [10, 20, 30, 20 * VOTE]
    assert votes(round_of(False, 10, 20, 30, 1e9)) == [10, 20, 30, 1e9]


def test_where_some_examples_are_enough_no_more_are_claimed():
    claimed = (50, 1000, 1000, 1000)
    assert counted(round_of(False, *claimed), answers_of(50, 128, 100, 1e6), max_examples=100)[3] == pytest.approx(1000)


def test_no_more_than_three_are_held_where_nothing_is_compared():
    most = held = 0

    def arriving():
        nonlocal held, most
        for answer in answers_of(*range(1, 40)):
            held += 1
            most = max(most, held)
            yield answer

    for _ in in_proportion(round_of(False, *range(1, 40)), arriving(), lambda at: Plain()):
        held -= 1
    assert most == 3


def test_too_many_sums_to_compare_are_refused_by_name(monkeypatch, caplog):
    monkeypatch.setattr("fedrebasin.strategies.round.gathering.MOST_HELD", 1000)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    _, metrics = run(RegMean(), FedMedian(**COMMON))
    assert metrics["rebasin-reg-mean-failed"] == 1.0
    assert "RegMean: max_features" in caplog.text
    assert "rebasin-reg-mean-failed" not in run(RegMean(), FedAvg(**COMMON))[1]


class Values(LeaveOneOut[float]):
    """The mean of numbers, and the distance to it."""

    def solve(self, total):
        return float(total["value"] / total["examples"])

    def loss(self, solution, terms):
        return abs(solution - self.solve(terms))


def numbers(*values):
    return {at: {"value": torch.tensor(float(v)), "examples": torch.tensor(1.0)} for at, v in enumerate(values)}


def test_who_contradicts_the_others_is_found_and_nobody_else():
    assert list(contradicting(numbers(1, 1.1, 0.9, 1, 9), Values())) == [4]
    assert list(contradicting(numbers(1, 1.1, 0.9, 1, 1.05, 30, 9), Values())) == [5, 6]
    assert not contradicting(numbers(1, 1, 1, 1, 1.4), Values())  # however alike the others are
    assert not contradicting(numbers(1, 2, 3, 4, 5), Values())
    assert not contradicting(numbers(1, 1, 9), Values())  # of three nobody is most


@pytest.mark.parametrize("attackers", range(4, 7))
def test_never_half_of_them(attackers):
    values = [1.0] * 4 + [10.0**at for at in range(1, attackers + 1)]
    assert 2 * len(contradicting(numbers(*values), Values())) < len(values)


@pytest.mark.parametrize("seed", range(3))
def test_a_statistic_that_nobody_knows_is_judged_by_its_means(seed):
    generator = torch.Generator().manual_seed(seed)

    def sums(size):
        own = 10 + torch.randn(4, 5, generator=generator)
        return scaled({"a": own.sum(0), "b": own.square().sum(), "examples": torch.tensor(4.0)}, size)

    terms = {at: sums(size) for at, size in enumerate((1, 20, 0.5, 3, 1))}
    assert not contradicting(terms, Means())  # how many examples there are is no contradiction
    terms[3]["b"] = 1e6 * terms[3]["b"]
    assert list(contradicting(terms, Means())) == [3]


@dataclass(frozen=True)
class Own:
    rewrites_weights: ClassVar[bool] = False
    robust: ClassVar[bool] = False

    def __call__(self, round_):
        raise NotImplementedError


@dataclass(frozen=True)
class Careful(Own):
    robust: ClassVar[bool] = True


def test_a_calibrator_that_expects_no_attackers_is_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    for part in (Careful(), *(part for name, part in PARTS.items() if name != "barrier")):
        Aligned(FedMedian(**COMMON), spec=SPEC, aligner=MergeMany(), calibrators=[part])
    Aligned(FedAvg(**COMMON), spec=SPEC, aligner=MergeMany(), calibrators=[Own()])
    assert "expects attackers" not in caplog.text
    Aligned(FedMedian(**COMMON), spec=SPEC, aligner=MergeMany(), calibrators=[Own()])
    assert "FedMedian inside Aligned expects attackers, and Own does not say robust = True" in caplog.text


def test_sums_of_a_calibrator_of_ones_own_are_compared_as_well():
    class Losses(Own):
        def __call__(self, round_):
            from fedrebasin.strategies import Calibrated
            from fedrebasin.sums import TemperatureCurve

            _, left_out = summed(round_, TemperatureCurve(), round_.state)
            return Calibrated(round_.state, {"losses-left-out": float(left_out)})

    assert run(Losses(), FedMedian(**COMMON), far)[1]["rebasin-losses-left-out"] == 1.0
    assert run(Losses(), FedMedian(**COMMON))[1]["rebasin-losses-left-out"] == 0.0
