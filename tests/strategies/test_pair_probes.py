"""Probes that ask the clients about two models: what comes back, what does not, and what is made of it."""

import math
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from fedrebasin.strategies.clients.statistics_mod import REFUSED
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from torch import nn

from fedrebasin import PermutationSpec, RebasinError, commutativity, feature_connectivity
from fedrebasin.analysis import HalfwayConnectivity, PathEvaluation, reciprocal_orthogonality
from fedrebasin.registry import STATISTICS
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import BarrierProbe, ConnectivityProbe, FedRebasin, StatisticsMod
from tests.strategies.helpers import AXES, make_state

CLIENTS, BAD = 4, 2
SIZES = (50, 3, 24, 0)  # the last client has no example at all
MODEL = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
SPEC = PermutationSpec.from_axes(AXES)
PROBES = {"barrier": BarrierProbe, "connectivity": ConnectivityProbe}


def make_model(context):
    return deepcopy(MODEL)


def batches_of(node: int) -> list:
    generator = torch.Generator().manual_seed(node)
    inputs = torch.randn(SIZES[node], 4, generator=generator)
    labels = torch.randint(3, (SIZES[node],), generator=generator)
    return list(zip(inputs.split(16), labels.split(16), strict=True))


def union(nodes=range(CLIENTS)) -> list:
    return [batch for node in nodes for batch in batches_of(node) if len(batch[0])]


class Counting(InlineGrid):
    """Keeps the requests for sums and the sums."""

    def __init__(self, app):
        super().__init__(app, CLIENTS)
        self.requests = []
        self.answers = []
        self.refusals = []

    def push_messages(self, messages):
        messages = list(messages)
        if any("statistic" in message.content for message in messages):
            self.requests.append(messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        self.refusals += [reply.error.code for reply in replies if reply.has_error()]
        self.answers += [reply.content["sums"] for reply in replies if reply.has_content() and "sums" in reply.content]
        return replies


def federation(spoil=None, bad=(BAD,), statistics=None) -> Counting:
    """Clients that add noise and answer queries; those in ``bad`` send what ``spoil`` makes of their sums."""
    mod = StatisticsMod(make_model, lambda context: batches_of(context.node_config["partition-id"]), 0)
    ignorant = StatisticsMod(mod.model, mod.batches, 0, statistics=statistics)
    app = ClientApp()

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(context.node_config["partition-id"])
        arrays = {
            key: Array(np.asarray(array.numpy() + 0.5 * rng.random(array.shape), dtype=array.numpy().dtype))
            for key, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 10.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.query("fedrebasin")
    def query(message, context):
        if context.node_config["partition-id"] not in bad:
            return mod.answer(message, context)
        reply = ignorant.answer(message, context)
        if spoil is None or reply.has_error():
            return reply
        sums = spoil(reply.content["sums"].to_torch_state_dict())
        if sums is None:
            return Message(Error(100, "no"), reply_to=message)
        return Message(RecordDict({"sums": ArrayRecord(sums), "metrics": MetricRecord({})}), reply_to=message)

    return Counting(app)


def run(*probes, grid=None, rounds=1, **options):
    random.seed(0)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    grid = federation() if grid is None else grid
    strategy = FedRebasin(inner, spec=SPEC, probes=probes, **options)
    return strategy.start(grid, ArrayRecord(make_state(0, integers=False)), num_rounds=rounds)


def measured(*probes, grid=None, **options):
    metrics = run(*probes, grid=grid, **options).train_metrics_clientapp[1]
    return {key.removeprefix("rebasin-"): value for key, value in metrics.items()}


@pytest.fixture(scope="module")
def first_pair():
    """The models that a probe of one pair is shown."""
    seen = []

    def look(round_):
        seen.extend(round_.merge.states)
        return {}

    run(look)
    return seen[:2]


@pytest.mark.parametrize("pairs", [1, 6])
def test_connectivity_from_the_clients_is_that_of_all_their_data(pairs):
    central = measured(ConnectivityProbe(MODEL, union(), max_pairs=pairs))
    federated = measured(ConnectivityProbe(max_pairs=pairs))
    assert federated.pop("connectivity-left-out") == 1  # the client without data
    assert central["connectivity-pairs"] == pairs
    assert set(central) == set(federated)
    assert federated["feature-cosine"] < 1
    for key in (key for key in central if "seconds" not in key):
        assert federated[key] == pytest.approx(central[key], rel=1e-5), key


def test_connectivity_is_what_the_analysis_says_of_the_aligned_models(first_pair):
    found = measured(ConnectivityProbe())
    a, b = first_pair
    layers = feature_connectivity(MODEL, a, b, union())
    assert found["feature-cosine"] == pytest.approx(np.mean([layer.cosine.mean for layer in layers]), rel=1e-5)
    assert found["feature-baseline"] == pytest.approx(np.mean([layer.baseline.mean for layer in layers]), rel=1e-5)
    assert found["llfc-coefficient"] == pytest.approx(layers[-1].coefficient.mean, rel=1e-5)
    (last,) = feature_connectivity(MODEL, a, b, union(), law="exponential")[1:]
    assert found["lewc-coefficient"] == pytest.approx(last.coefficient.mean, rel=1e-5)
    distances = [layer.dist_com for layer in commutativity(MODEL, a, b, union())]
    assert found["commutativity"] == pytest.approx(np.mean(distances), rel=1e-5)
    _, later = reciprocal_orthogonality(MODEL, a, b, union())
    assert found["reciprocal-ratio"] == pytest.approx(later.ratio.mean, rel=1e-5)


@pytest.mark.parametrize("points", [2, 7])
def test_the_barrier_from_the_clients_is_that_of_all_their_data(points):
    central = measured(BarrierProbe(MODEL, union(), points, max_pairs=6))
    federated = measured(BarrierProbe(points=points, max_pairs=6))
    assert federated["barrier"] == pytest.approx(central["barrier"], rel=1e-5, abs=1e-7)
    assert federated["barrier-largest"] == pytest.approx(central["barrier-largest"], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("pairs", [1, 3])
def test_a_pair_costs_one_round_trip_two_models_there_and_a_few_sums_back(name, pairs):
    grid = federation()
    measured(PROBES[name](max_pairs=pairs), grid=grid)
    assert len(grid.requests) == pairs
    for messages in grid.requests:
        assert sorted(message.metadata.dst_node_id for message in messages) == list(range(1, CLIENTS + 1))
        for message in messages:
            records = message.content.array_records
            assert sorted(records) == ["arrays", "set-other"]
            assert all(set(record) == set(make_state(0, integers=False)) for record in records.values())
        # Encoded once for all of them.
        assert len({id(message.content["set-other"]) for message in messages}) == 1
    for record in grid.answers:
        assert sum(math.prod(array.shape) for array in record.values()) <= 30 * 2 + 1


def changed(key, change):
    return lambda sums: {name: change(tensor) if key in name else tensor for name, tensor in sums.items()}


SPOILED = {
    "nan": lambda sums: {name: torch.full_like(tensor, math.nan) for name, tensor in sums.items()},
    "one nan": changed("examples", lambda tensor: tensor * math.nan),
    "wrong shapes": lambda sums: {name: tensor[..., :-1] if tensor.dim() else tensor for name, tensor in sums.items()},
    "too many examples": changed("examples", lambda tensor: tensor * 1e15),
    "too many of all": lambda sums: {name: tensor * 1e15 for name, tensor in sums.items()},
    "negative": lambda sums: {name: tensor if name == "examples" else -tensor for name, tensor in sums.items()},
    "another's": lambda sums: {"examples": sums["examples"], "0.weight.gram": torch.eye(5, dtype=torch.float64)},
    "more": lambda sums: {**sums, "more": torch.ones(3)},
    "nothing": lambda sums: {},
    "no": lambda sums: None,
    "raise": lambda sums: sums["there is no such entry"],
    "strings": lambda sums: {name: tensor.long() for name, tensor in sums.items()},
}


@pytest.fixture(scope="module")
def without():
    """What each probe finds where the bad client's data do not exist."""
    others = union([node for node in range(CLIENTS) if node != BAD])
    return {name: measured(probe(MODEL, others)) for name, probe in PROBES.items()}


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("name", PROBES)
def test_a_client_with_absurd_sums_is_left_out(without, caplog, name, spoil):
    found = measured(PROBES[name](), grid=federation(SPOILED[spoil]))
    assert found[f"{name}-left-out"] == 2  # and the one without data
    assert f"left out node {BAD + 1}: " in caplog.text
    for key in ("barrier",) if name == "barrier" else ("feature-cosine", "commutativity", "reciprocal-ratio"):
        assert found[key] == pytest.approx(without[name][key], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", PROBES)
def test_clients_that_do_not_know_the_question_are_reported_and_the_round_goes_on(caplog, name):
    known = [kind for kind in STATISTICS.values() if kind not in (HalfwayConnectivity, PathEvaluation)]
    some = measured(PROBES[name](), grid=federation(statistics=known))
    assert some[f"{name}-left-out"] == 2
    assert "no statistic" in caplog.text
    plain = run()
    found = run(PROBES[name](), grid=federation(bad=range(CLIENTS), statistics=known), rounds=2)
    for number in (1, 2):
        assert found.train_metrics_clientapp[number][f"rebasin-{name}-probe-failed"] == 1
    one = run(PROBES[name](), grid=federation(bad=range(CLIENTS), statistics=known))
    for key, array in plain.arrays.items():
        assert np.array_equal(array.numpy(), one.arrays[key].numpy()), key


def test_clients_stop_after_enough_examples():
    """Batches are of 16 and stay whole: 17 examples are two of them."""
    grid = federation()
    found = measured(BarrierProbe(examples=17), ConnectivityProbe(examples=17), grid=grid)
    counts = [float(record["examples"].numpy()) for record in grid.answers if "examples" in record]
    assert sorted(counts) == [3, 3, 24, 24, 32, 32]
    read = [*batches_of(0)[:2], *batches_of(1), *batches_of(2)]
    central = measured(BarrierProbe(MODEL, read), ConnectivityProbe(MODEL, read))
    for key in ("barrier", "feature-cosine", "commutativity"):
        assert found[key] == pytest.approx(central[key], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("enough", [0, -1, 0.5, "all"])
def test_an_absurd_number_of_examples_is_refused(caplog, enough):
    class Asking(Counting):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if "statistic" in message.content:
                    message.content["statistic"]["max-examples"] = enough
            return super().push_messages(messages)

    grid = federation()
    grid.__class__ = Asking
    assert measured(BarrierProbe(), grid=grid)["barrier-probe-failed"] == 1
    assert "is no number of examples" in caplog.text


def test_apps_without_a_query_function_are_asked_by_training_messages():
    app = ClientApp(mods=[StatisticsMod(make_model, lambda c: batches_of(c.node_config["partition-id"]), 0)])

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 10.0})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    found = measured(ConnectivityProbe(), BarrierProbe(), grid=Counting(app), query_type="train")
    assert found["feature-cosine"] == pytest.approx(1)
    assert found["barrier"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_clients_are_not_shown_models_that_noise_was_promised_for(name):
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, CLIENTS)
    with pytest.raises(RebasinError, match="would show clients one another's models"):
        FedRebasin(private, spec=SPEC, probes=[PROBES[name]()])
    FedRebasin(private, spec=SPEC, probes=[PROBES[name](MODEL, union())])


def test_a_client_refuses_two_models_that_differ(caplog):
    class Cutting(Counting):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if "set-other" in message.content:
                    record = message.content["set-other"]
                    message.content["set-other"] = ArrayRecord({key: record[key] for key in list(record)[1:]})
            return super().push_messages(messages)

    grid = federation()
    grid.__class__ = Cutting
    assert measured(BarrierProbe(), grid=grid)["barrier-probe-failed"] == 1
    assert "MergeError: the models differ in the keys 0.weight" in caplog.text
    assert set(grid.refusals) == {REFUSED}  # and none of them raised
