"""Probes: their floats stand in Flower's Result by round, and they never end a round."""

import random

import numpy as np
import pytest
import torch
from fedrebasin.strategies.client import register
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin import PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    AlignmentProbe,
    BarrierProbe,
    ConnectivityProbe,
    FedRebasin,
    FedWideAvg,
    SpectrumProbe,
)
from tests.strategies.helpers import AXES, make_state

CLIENTS = 3
MODEL = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
SPEC = PermutationSpec.from_axes(AXES)


def batches_of(seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)) for _ in range(2)]


def federation(noise: float = 0.5) -> ClientApp:
    """Clients that add noise, and answer queries on their own data."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        rng = np.random.default_rng([node, message.content["config"]["server-round"]])
        arrays = {
            key: Array(np.asarray(array.numpy() + noise * rng.random(array.shape), dtype=array.numpy().dtype))
            for key, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 10.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    register(app, model=lambda context: MODEL, batches=lambda context: batches_of(context.node_config["partition-id"]))
    return app


def run(strategy, rounds=2, noise=0.5):
    random.seed(0)
    inner = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
    grid = InlineGrid(federation(noise), CLIENTS)
    start = ArrayRecord(make_state(0, integers=False))
    return strategy(FedAvg(**inner)).start(grid, start, num_rounds=rounds).train_metrics_clientapp


def aligned(*probes):
    return lambda inner: FedRebasin(inner, spec=SPEC, probes=probes)


def test_every_probe_reports_in_every_round():
    batches = batches_of(9)
    found = run(
        aligned(BarrierProbe(MODEL, batches), ConnectivityProbe(MODEL, batches), AlignmentProbe(), SpectrumProbe(MODEL))
    )
    assert set(found) == {1, 2}
    for metrics in found.values():
        assert {
            "rebasin-barrier",
            "rebasin-feature-cosine-last",
            "rebasin-commutativity",
            "rebasin-spread",
            "rebasin-stable-rank-0.weight",
            "rebasin-stable-rank-clients-3.weight",
        } <= set(metrics)
        assert not any("failed" in key for key in metrics)
    assert "rebasin-fixed-since-last" not in found[1]
    assert 0 <= found[2]["rebasin-fixed-since-last"] <= 1


def test_equal_clients_have_no_barrier_and_agree_in_all_features():
    batches = batches_of(9)
    metrics = run(aligned(BarrierProbe(MODEL, batches), ConnectivityProbe(MODEL, batches)), 1, noise=0.0)[1]
    assert metrics["rebasin-barrier"] == pytest.approx(0, abs=1e-6)
    assert metrics["rebasin-feature-cosine"] == pytest.approx(1)
    assert metrics["rebasin-llfc-coefficient"] == pytest.approx(1)
    assert metrics["rebasin-commutativity"] == pytest.approx(0, abs=1e-9)
    assert metrics["rebasin-reciprocal-ratio"] == pytest.approx(1)


def test_clients_evaluate_the_path_on_their_own_data():
    everything = [batch for node in range(CLIENTS) for batch in batches_of(node)]
    central = run(aligned(BarrierProbe(MODEL, everything)), 1)[1]["rebasin-barrier"]
    federated = run(aligned(BarrierProbe()), 1)[1]["rebasin-barrier"]
    assert federated == pytest.approx(central, rel=1e-5)


def test_rounds_between_are_left_out_and_pairs_are_bounded_by_the_budget():
    batches = batches_of(9)
    found = run(aligned(BarrierProbe(MODEL, batches, every=2, max_pairs=3)))
    assert "rebasin-barrier" not in found[1]
    assert found[2]["rebasin-barrier-pairs"] == 3
    found = run(aligned(BarrierProbe(MODEL, batches, seconds=1e-9, max_pairs=3)), 1)
    assert found[1]["rebasin-barrier-pairs"] == 1


def test_without_an_alignment_the_clients_own_models_are_measured():
    found = run(lambda inner: FedWideAvg(inner, probes=(BarrierProbe(MODEL, batches_of(9)), AlignmentProbe())), 1)[1]
    assert "rebasin-barrier" in found
    assert "rebasin-spread" not in found


def test_a_probe_that_raises_is_reported_and_the_round_goes_on():
    wrong = [(torch.zeros(2, 99), torch.zeros(2, dtype=torch.int64))]
    plain = run(lambda inner: Aligned(inner, spec=SPEC), 2)
    found = run(lambda inner: Aligned(inner, spec=SPEC, probes=(BarrierProbe(MODEL, wrong), AlignmentProbe())), 2)
    assert found[2]["rebasin-barrier-probe-failed"] == 1
    assert "rebasin-spread" in found[2]
    assert found[2]["rebasin-similarity"] == plain[2]["rebasin-similarity"]


@pytest.mark.parametrize("options", [{"every": 0}, {"seconds": -1.0}])
def test_schedules_are_checked(options):
    with pytest.raises(RebasinError, match="must be positive"):
        BarrierProbe(**options)


def test_half_a_server_side_is_none():
    with pytest.raises(RebasinError, match="a model and batches"):
        BarrierProbe(MODEL)
