"""BatchNorm's statistics behind strategies that take steps: averaged where replies are aligned, else warned of."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg
from torch import nn

from fedrebasin import AlignTo, Identity, Permutation, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, BatchNormRecalibration, FedRebasin, register, to_state
from tests.flower.harness import fit, heard, make_data, partition_of, score
from tests.strategies.helpers import AXES, COMMON, STRATEGIES, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(AXES)
STEPPING = ("FedAvgM", "FedAdam", "FedAdagrad", "FedYogi")
STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def copies(seed, number=8):
    """The global model, and replies near it whose units are in another order; with what they are in its order."""
    start = make_state(seed)
    states = [
        {key: t + t.new_tensor(0.05 * (node + 1)).to(t.dtype) for key, t in start.items()} for node in range(number)
    ]
    spec = SPEC.bind(start)
    moved = [
        Permutation.random(spec, torch.Generator().manual_seed(node)).apply(state) for node, state in enumerate(states)
    ]
    return start, states, [make_reply(state, node + 1, 10 + node) for node, state in enumerate(moved)]


def aligned(strategy, start, **options):
    return Aligned(strategy, spec=SPEC, aligner=AlignTo(reference=start), **options)


class MyAdam(FedAdam):
    """As a user writes one: it may look at the single replies."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [*STEPPING, "mine"])
@pytest.mark.parametrize("seed", range(3))
def test_behind_an_aligner_statistics_are_the_weighted_mean_of_the_aligned_replies(seed, name, streaming):
    start, states, replies = copies(seed)
    make = STRATEGIES.get(name, lambda: MyAdam(**COMMON))
    arrays, _ = run_round(aligned(make(), start, streaming=streaming), start, replies)
    found = to_state(arrays)
    for key in STATISTICS:
        mean = np.average([state[key].double().numpy() for state in states], axis=0, weights=range(10, 18))
        expected = np.rint(mean) if key.endswith("tracked") else mean
        np.testing.assert_allclose(found[key].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert found[key].dtype == start[key].dtype
    plain, _ = run_round(
        MyAdam(**COMMON) if name == "mine" else STRATEGIES[name](), start, [make_reply(s) for s in states]
    )
    stepped = to_state(plain)
    mean = torch.stack([state["0.weight"] for state in states]).mean(0)
    assert not torch.allclose(found["0.weight"], mean, atol=1e-3)  # weights are stepped as ever
    assert not torch.allclose(stepped["1.running_var"].float(), found["1.running_var"], atol=1e-3)


@pytest.mark.parametrize("name", ["FedAvg", *STEPPING])
def test_without_an_aligner_the_strategy_is_what_it_is(name):
    start, states, _ = copies(0)
    replies = [make_reply(state, node + 1) for node, state in enumerate(states)]
    plain, _ = run_round(STRATEGIES[name](), start, [make_reply(state, node + 1) for node, state in enumerate(states)])
    with heard() as warnings:
        arrays, _ = run_round(Aligned(STRATEGIES[name](), aligner=Identity()), start, replies)
    for key, array in plain.items():
        expected = array.numpy().astype(arrays[key].dtype) if array.numpy().dtype.kind == "f" else array.numpy()
        if key != "1.num_batches_tracked":
            np.testing.assert_array_equal(arrays[key].numpy(), expected)
    said = [sentence for sentence in warnings if "running statistics" in sentence]
    assert [name in sentence and "BatchNormRecalibration" in sentence for sentence in said] == [True] * (
        name in STEPPING
    )


def test_private_statistics_keep_their_noise():
    """The mean of the replies is what the noise is there to hide."""
    start, states, replies = copies(0)
    private = DifferentialPrivacyServerSideFixedClipping(FedAdam(**COMMON), 1e-9, 1e9, 8)
    arrays, _ = run_round(FedRebasin(private, spec=SPEC), start, replies)
    mean = np.average([state["1.running_var"].numpy() for state in states], axis=0, weights=range(10, 18))
    assert not np.allclose(arrays["1.running_var"].numpy(), mean, atol=1e-3)


class Lowering(FedAvg):
    """Takes 5 from every number of the mean."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        lower = {key: type(array)(np.asarray(array.numpy() - 5)) for key, array in arrays.items()}
        return ArrayRecord(lower), metrics


def test_a_strategy_says_itself_whether_it_takes_steps():
    class Mine(Lowering):
        steps_statistics = True

    start, _, replies = copies(0)
    arrays, _ = run_round(FedRebasin(Mine(**COMMON), spec=SPEC), start, replies)
    assert (arrays["1.running_var"].numpy() > 0).all()
    assert (arrays["1.weight"].numpy() < 0).all()


def test_negative_variances_of_any_strategy_are_warned_of_once_a_run():
    class Mine(Lowering):
        """Says nothing of itself."""

    start, states, _ = copies(0)
    strategy = Aligned(Mine(**COMMON), aligner=Identity())
    with heard() as warnings:
        for server_round in (1, 2):
            replies = [make_reply(state, node + 1) for node, state in enumerate(states)]
            run_round(strategy, start, replies, server_round)
    assert len(warnings) == 1
    assert "Mine has negative variances in running statistics (1.running_var)" in warnings[0]


# A real run: inputs of small variance, as dark images have it, four clients, FedAdam with Flower's settings.


def make_norm_net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def dark_data(partition):
    inputs, labels = make_data(partition)
    return 0.05 * inputs, labels


CLIENTS = ClientApp()
register(CLIENTS, model=lambda context: make_norm_net(), batches=lambda context: [dark_data(partition_of(context))])


@CLIENTS.train()
def train(message, context):
    net, data = make_norm_net(), dark_data(partition_of(context))
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss = fit(net.train(), data)
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 32, "loss": loss})}
    return Message(RecordDict(content), reply_to=message)


@CLIENTS.evaluate()
def evaluate(message, context):
    net = make_norm_net().eval()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    found = score(net, dark_data(100 + partition_of(context)))
    return Message(RecordDict({"metrics": MetricRecord({**found, "num-examples": 32})}), reply_to=message)


def run(wrap, seed):
    settings = {"min_train_nodes": 4, "min_evaluate_nodes": 4, "min_available_nodes": 4}
    start, least = ArrayRecord(make_norm_net(seed).state_dict()), []

    def look(server_round, arrays):
        least.append(float(arrays["1.running_var"].numpy().min()))

    with heard() as warnings:
        result = wrap(FedAdam(**settings)).start(InlineGrid(CLIENTS, 4), start, num_rounds=14, evaluate_fn=look)
    losses = [metrics["loss"] for metrics in result.evaluate_metrics_clientapp.values()]
    return min(least), losses, [line for line in warnings if "running statistics" in line]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_fedadam_makes_variances_negative_and_not_where_replies_are_aligned(seed):
    spec = PermutationSpec.trace(make_norm_net(), torch.zeros(2, 8))
    least, plain_losses, _ = run(lambda inner: inner, seed)
    assert least < 0
    assert not np.isfinite(plain_losses).all()
    least, losses, warnings = run(lambda inner: FedRebasin(inner, spec=spec), seed)
    assert least > 0
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert warnings == []
    _, _, warnings = run(lambda inner: Aligned(inner, aligner=Identity()), seed)
    assert len(warnings) == 1


def test_with_recalibration_there_is_nothing_to_suggest():
    least, losses, warnings = run(
        lambda inner: Aligned(inner, aligner=Identity(), calibrators=[BatchNormRecalibration()]), 0
    )
    assert least > 0
    assert np.isfinite(losses).all()
    assert warnings == []
