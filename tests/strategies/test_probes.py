"""Probes: their floats stand in Flower's Result by round, and they never end a round."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from fedrebasin.strategies.clients.statistics_mod import register
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian
from torch import nn

from fedrebasin import Identity, PermutationSpec, RebasinError
from fedrebasin.analysis import activation_spectra, stable_rank
from fedrebasin.devices import at_hand
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    AlignmentProbe,
    BarrierProbe,
    ConnectivityProbe,
    FedMergeMany,
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

    register(
        app,
        model=lambda context: deepcopy(MODEL),
        batches=lambda context: batches_of(context.node_config["partition-id"]),
    )
    return app


def run_all(strategy, rounds=2, noise=0.5, inner=FedAvg):
    random.seed(0)
    options = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
    grid = InlineGrid(federation(noise), CLIENTS)
    start = ArrayRecord(make_state(0, integers=False))
    return strategy(inner(**options)).start(grid, start, num_rounds=rounds)


def run(strategy, rounds=2, noise=0.5, inner=FedAvg):
    return run_all(strategy, rounds, noise, inner).train_metrics_clientapp


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


OUTER = {
    "FedRebasin": lambda inner, **options: FedRebasin(inner, spec=SPEC, **options),
    "FedMergeMany": lambda inner, **options: FedMergeMany(inner, spec=SPEC, **options),
    "FedWideAvg": lambda inner, **options: FedWideAvg(inner, temperature=None, **options),
    "Aligned(FedAvgM)": lambda inner, **options: Aligned(inner, spec=SPEC, **options),
}
ON_SERVER = {
    "barrier": lambda: BarrierProbe(MODEL, batches_of(9)),
    "connectivity": lambda: ConnectivityProbe(MODEL, batches_of(9)),
    "spread": lambda: AlignmentProbe(),
    "stable-rank-0.weight": lambda: SpectrumProbe(MODEL, batches=batches_of(9)),
}
ON_CLIENTS = {"barrier": BarrierProbe, "connectivity": ConnectivityProbe}


@pytest.mark.parametrize("where", [ON_SERVER, ON_CLIENTS], ids=["server", "clients"])
@pytest.mark.parametrize("outer", OUTER)
def test_probes_work_with_every_strategy_and_change_nothing(outer, where):
    inner = FedAvgM if "FedAvgM" in outer else FedAvg
    MODEL.train()
    MODEL[1].eval()
    held = {name: (tensor, tensor.clone()) for name, tensor in MODEL.state_dict(keep_vars=True).items()}
    plain = run_all(lambda strategy: OUTER[outer](strategy), inner=inner)
    found = run_all(lambda strategy: OUTER[outer](strategy, probes=[make() for make in where.values()]), inner=inner)
    for number in (1, 2):
        metrics = found.train_metrics_clientapp[number]
        assert not any("failed" in key for key in metrics), metrics
        for key in {"connectivity-pairs" if key == "connectivity" else key for key in where}:
            assert (f"rebasin-{key}" in metrics) is not (key == "spread" and outer == "FedWideAvg")
    for key, array in plain.arrays.items():
        assert np.array_equal(array.numpy(), found.arrays[key].numpy()), key
    assert [module.training for module in MODEL] == [True, False, True, True]
    for name, tensor in MODEL.state_dict(keep_vars=True).items():
        assert tensor is held[name][0]
        assert torch.equal(tensor, held[name][1])


NEED_MODELS = {
    "barrier-probe": BarrierProbe,
    "connectivity-probe": lambda: ConnectivityProbe(MODEL, batches_of(9)),
    "alignment-probe": AlignmentProbe,
    "spectrum-probe": lambda: SpectrumProbe(MODEL),
}


@pytest.mark.parametrize("name", NEED_MODELS)
def test_streaming_keeps_no_models_and_a_probe_that_needs_them_says_so(caplog, name):
    make = NEED_MODELS[name]
    found = run(lambda inner: FedRebasin(inner, spec=SPEC, probes=[make()], streaming=True), 1)[1]
    assert found[f"rebasin-{name}-failed"] == 1
    assert "needs the clients' models, which streaming lets go of: use streaming=False" in caplog.text
    kept = run(lambda inner: FedRebasin(inner, spec=SPEC, probes=[make()], streaming=True), 1, inner=FedMedian)[1]
    assert not any("failed" in key for key in kept)


def test_streaming_and_the_aggregates_spectra():
    probes = (SpectrumProbe(MODEL, clients=0, batches=batches_of(9)),)
    found = run(lambda inner: FedRebasin(inner, spec=SPEC, probes=probes, streaming=True), 1)[1]
    assert found["rebasin-stable-rank-3.weight"] >= 1
    assert found["rebasin-stable-rank-inputs-3"] >= 1
    assert not any("failed" in key or "clients" in key for key in found)


def test_spectra_are_those_of_the_aggregate_and_of_the_clients():
    batches = batches_of(9)
    seen = []

    def look(round_):
        seen.append(round_)
        return {}

    found = run(aligned(look, SpectrumProbe(MODEL, batches=batches)), 1)[1]
    (round_,) = seen
    assert found["rebasin-stable-rank-0.weight"] == pytest.approx(stable_rank(round_.state["0.weight"]))
    ranks = [stable_rank(reply.state["3.weight"]) for reply in round_.replies]
    assert found["rebasin-stable-rank-clients-3.weight"] == pytest.approx(np.mean(ranks), rel=1e-5)
    own = activation_spectra(MODEL, round_.state, batches)
    clients = [activation_spectra(MODEL, reply.state, batches) for reply in round_.replies]
    for layer in ("0", "3"):
        assert found[f"rebasin-stable-rank-inputs-{layer}"] == pytest.approx(own[layer].stable_rank)
        expected = np.mean([spectra[layer].stable_rank for spectra in clients])
        assert found[f"rebasin-stable-rank-inputs-clients-{layer}"] == pytest.approx(expected, rel=1e-5)
    assert (found["rebasin-spectra"], found["rebasin-spectra-left-out"]) == ((1 + CLIENTS) * (2 + 1), 0)


def test_spectra_stop_at_the_budget_and_say_how_far_they_came():
    found = run(aligned(SpectrumProbe(MODEL, batches=batches_of(9), seconds=1e-9), AlignmentProbe(seconds=1e-9)), 1)[1]
    assert (found["rebasin-spectra"], found["rebasin-spectra-left-out"]) == (1, 3 * (1 + CLIENTS) - 1)
    assert [key for key in found if "stable-rank" in key] == ["rebasin-stable-rank-0.weight"]
    assert "rebasin-spread" in found
    assert "rebasin-spread-unaligned" not in found


def test_the_spread_is_the_distance_to_the_mean():
    seen = []

    def look(round_):
        seen.append(round_)
        return {}

    found = run(aligned(look, AlignmentProbe()), 1)[1]
    for key, states in (
        ("spread", seen[0].merge.states),
        ("spread-unaligned", [reply.state for reply in seen[0].replies]),
    ):
        rows = torch.stack([torch.cat([state[name].double().flatten() for name in state]) for state in states])
        mean = rows.mean(0)
        expected = ((rows - mean).square().sum(1).mean() / mean.square().sum()).sqrt()
        assert found[f"rebasin-{key}"] == pytest.approx(float(expected), rel=1e-9)


def test_what_a_model_keeps_beside_its_state_is_lent_to_the_device_and_given_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_buffer("mask", torch.ones(2), persistent=False)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "1.bias"}
    with at_hand(model, state, torch.device("meta")):
        assert model.mask.is_meta
        assert model[1].bias.is_meta
        assert not model[0].weight.is_meta
    assert all(held[name] is tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()))


@pytest.mark.cuda
@pytest.mark.parametrize("where", [ON_SERVER, ON_CLIENTS], ids=["server", "clients"])
def test_on_a_gpu_the_numbers_are_the_same_and_the_model_stays_on_the_cpu(where):
    def probes():
        return [make() for make in where.values()]

    on_cpu, on_gpu = (
        run(lambda inner, device=device: FedRebasin(inner, spec=SPEC, probes=probes(), device=device), 1)[1]
        for device in ("cpu", "cuda")
    )
    assert set(on_cpu) == set(on_gpu)
    for key in (key for key in on_cpu if "seconds" not in key):
        assert on_gpu[key] == pytest.approx(on_cpu[key], rel=1e-3, abs=1e-4), key
    if where is ON_SERVER:
        assert all(not tensor.is_cuda for tensor in MODEL.state_dict().values())


def test_one_client_makes_no_pair():
    grid = InlineGrid(federation(), 1)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    strategy = Aligned(inner, aligner=Identity(), probes=(BarrierProbe(), ConnectivityProbe()))
    found = strategy.start(grid, ArrayRecord(make_state(0, integers=False)), num_rounds=1).train_metrics_clientapp[1]
    assert (found["rebasin-barrier-pairs"], found["rebasin-connectivity-pairs"]) == (0, 0)
    assert not any("failed" in key for key in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BarrierProbe(every=0), "must be positive"),
        (lambda: AlignmentProbe(seconds=-1.0), "must be positive"),
        (lambda: BarrierProbe(points=1), "its two ends"),
        (lambda: ConnectivityProbe(max_pairs=0), "at least 1"),
        (lambda: BarrierProbe(examples=0), "at least 1"),
        (lambda: SpectrumProbe(MODEL, clients=-1), "clients -1"),
        (lambda: SpectrumProbe(MODEL, batches=iter(batches_of(1))), "not an iterator"),
        (lambda: BarrierProbe(MODEL, iter(batches_of(1))), "not an iterator"),
        (lambda: BarrierProbe(MODEL), "BarrierProbe needs a model and batches"),
        (lambda: ConnectivityProbe(batches=batches_of(1)), "ConnectivityProbe needs a model and batches"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_run(make, message):
    with pytest.raises(RebasinError, match=message):
        make()
