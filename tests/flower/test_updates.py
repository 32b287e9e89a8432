"""Clients that send what training changed, and a strategy that adds the mean of it to its model."""

import json

import numpy as np
import pytest
import torch
from fedrebasin.strategies.replies import FormError
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedrebasin import AlignTo, Identity, MergeMany, Permutation, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, Calibrated, FedRebasin, Frames
from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    fit,
    heard,
    make_data,
    make_net,
    partition_of,
    run_app,
    spec_of,
    unwrapped,
)

SPEC = spec_of(make_net())
COMMON = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}


class Adding(FedAvg):
    """Adds the mean update to the model that it sent."""

    def __init__(self, folder=None):
        super().__init__(**COMMON)
        self.folder = folder

    def configure_train(self, server_round, arrays, config, grid):
        self.sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        if self.folder is not None:
            length = sum(float(np.square(array.numpy()).sum()) for array in mean.values()) ** 0.5
            (self.folder / f"step-{server_round}.json").write_text(json.dumps({"length": length}))
        added = {key: Array(np.asarray(self.sent[key].numpy() + array.numpy())) for key, array in mean.items()}
        return ArrayRecord(added), metrics


class AddingTheMean(Adding):
    """One that needs no more than the mean of the replies, so that they may be streamed."""

    needs_all = False


def client_app(order=None, sends="update", net=make_net, steps=5):
    """Clients that train what they get, in an order of units of their own from then on."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        model, data = net(), make_data(partition_of(context))
        sent = message.content["arrays"].to_torch_state_dict()
        model.load_state_dict(sent)
        loss = fit(model, data, steps=steps)
        after = model.state_dict() if order is None else order(context.node_id).apply(model.state_dict())
        what = {key: after[key] - (sent[key] if sends == "update" else 0) for key in sent}
        metrics = MetricRecord({"train-loss": loss, "num-examples": 10 + context.node_id})
        return Message(RecordDict({"arrays": ArrayRecord(what), "metrics": metrics}), reply_to=message)

    return app


def shuffled(node_id):
    return Permutation.random(SPEC, torch.Generator().manual_seed(node_id))


def final(strategy, app, start=None, rounds=ROUNDS):
    arrays = ArrayRecord(make_net().state_dict() if start is None else start)
    return strategy.start(InlineGrid(app, CLIENTS), arrays, num_rounds=rounds).arrays.to_torch_state_dict()


def close(one, other, atol=1e-6):
    return all(torch.allclose(one[key], other[key], atol=atol) for key in other)


def serve(grid, wrap, folder):
    return wrap(Adding(folder)).start(grid, ArrayRecord(make_net().state_dict()), num_rounds=ROUNDS)


def test_the_app_keeps_working(tmp_path):
    last = assert_keeps_working(
        serve, client_app(), tmp_path, lambda strategy: FedRebasin(strategy, spec=SPEC, sends="update")
    )
    assert "step-2.json" in last.files
    assert not last.warnings or not any("shorter" in warning for warning in last.warnings)


@pytest.mark.parametrize("aligner", [AlignTo(reference="auto"), AlignTo(reference="medoid"), MergeMany()])
@pytest.mark.parametrize("order", [None, shuffled], ids=["own order", "shuffled"])
@pytest.mark.parametrize("frame", ["server", "client"])
def test_updates_make_the_model_that_models_make(aligner, order, frame):
    """model + mean of P(model + update) - model is the mean of the aligned models."""
    options = {"spec": SPEC, "aligner": aligner, "frame": frame}
    ours = final(Aligned(Adding(), sends="update", **options), client_app(order))
    models = final(Aligned(FedAvg(**COMMON), **options), client_app(order, sends="model"))
    assert close(ours, models, atol=1e-5)
    if order is None and aligner == AlignTo(reference="auto"):
        assert close(ours, final(Adding(), client_app()), atol=1e-5)


@pytest.mark.parametrize("order", [None, shuffled], ids=["own order", "shuffled"])
@pytest.mark.parametrize("aligner", [AlignTo(), Identity()])
def test_streamed_or_not(order, aligner):
    def run(kind, streaming):
        probes = (lambda round_: {"length": 1.0},)  # with Identity too replies are read then
        options = {"spec": SPEC, "aligner": aligner, "sends": "update", "streaming": streaming, "probes": probes}
        return final(Aligned(kind(), **options), client_app(order))

    expected = run(Adding, False)
    for kind, streaming in ((AddingTheMean, False), (AddingTheMean, True), (Adding, True)):
        assert close(run(kind, streaming), expected, atol=1e-5), (kind, streaming)


def test_a_known_order_of_a_node_maps_its_update():
    """With ``frame="client"`` and orders that are known, P(update) goes on, and nothing is lost to rounding."""
    orders = {node + 1: shuffled(node) for node in range(CLIENTS)}
    state = {key: tensor.clone() for key, tensor in make_net().state_dict().items()}
    update = {key: 1e-3 * tensor for key, tensor in make_net(5).state_dict().items()}
    app = ClientApp()

    @app.train()
    def train(message, context):
        received = message.content["arrays"].to_torch_state_dict()
        own = orders[context.node_id].inverse()
        assert close(received, own.apply(state), atol=0)
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(own.apply(update)), "metrics": metrics}), reply_to=message)

    result = final(Aligned(Adding(), spec=SPEC, frame=Frames(by_node=orders), sends="update"), app, state, rounds=1)
    assert close(result, {key: state[key] + update[key] for key in state})


def test_half_precision_loses_no_small_update():
    """A model's rounding in float16 would swallow it."""
    state = {key: tensor.half() for key, tensor in make_net().state_dict().items()}
    app = ClientApp()

    @app.train()
    def train(message, context):
        update = ArrayRecord({key: torch.full_like(tensor, 2e-5) for key, tensor in state.items()})
        return Message(RecordDict({"arrays": update, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    class Keeping(Adding):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.got = [message.content["arrays"]["0.weight"].numpy() for message in replies]
            return super().aggregate_train(server_round, replies)

    inner = Keeping()
    final(Aligned(inner, spec=SPEC, sends="update"), app, state, rounds=1)
    assert all(np.allclose(values, 2e-5, rtol=0.05) for values in inner.got)


@pytest.mark.parametrize("options", [{"spec": SPEC}, {"aligner": Identity()}], ids=["aligned", "as it is"])
def test_calibrators_and_probes_see_models(options):
    seen = []

    class Looking:
        rewrites_weights = False

        def __call__(self, round_):
            seen.extend(reply.state for reply in round_.replies)
            return Calibrated(round_.state)

    app = client_app(sends="model", steps=1)
    final(Aligned(FedAvg(**COMMON), **options, calibrators=[Looking()]), app, rounds=1)
    final(Aligned(Adding(), **options, calibrators=[Looking()], sends="update"), client_app(steps=1), rounds=1)
    assert len(seen) == 2 * CLIENTS
    assert all(close(one, other) for one, other in zip(seen[:CLIENTS], seen[CLIENTS:], strict=True))


def test_an_update_is_one_of_the_model_that_its_node_was_sent():
    """A strategy that sends each node a model of its own, of which a node makes one in another order of units."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        sent = message.content["arrays"].to_torch_state_dict()
        after = shuffled(context.node_id).apply({key: 1.01 * tensor for key, tensor in sent.items()})
        update = ArrayRecord({key: after[key] - sent[key] for key in sent})
        return Message(RecordDict({"arrays": update, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    class Personal(Adding):
        def configure_train(self, server_round, arrays, config, grid):
            for message in super().configure_train(server_round, arrays, config, grid):
                node, state = message.metadata.dst_node_id, arrays.to_torch_state_dict()
                own = ArrayRecord({key: (1 + 0.1 * node) * tensor for key, tensor in state.items()})
                yield Message(RecordDict({**message.content, "arrays": own}), node, "train")

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.got = {m.metadata.src_node_id: m.content["arrays"].to_torch_state_dict() for m in replies}
            return super().aggregate_train(server_round, replies)

    inner, state = Personal(), make_net().state_dict()
    final(Aligned(inner, spec=SPEC, aligner=AlignTo(reference=state), sends="update"), app, rounds=1)
    for node, update in inner.got.items():
        assert close(update, {key: 0.01 * (1 + 0.1 * node) * tensor for key, tensor in state.items()})


@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
def test_a_strategy_that_takes_models_is_refused(inner):
    with pytest.raises(RebasinError, match=f"{inner.__name__} takes the updates"):
        Aligned(inner(), spec=SPEC, sends="update")
    Aligned(inner(), aligner=Identity(), sends="update")  # whatever it makes of them alone
    with pytest.raises(RebasinError, match="sends"):
        Aligned(Adding(), spec=SPEC, sends="delta")


class Mean(FedAvg):
    """Gives the mean update for a model."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


class Doubling:
    """A calibrator that needs a model."""

    rewrites_weights = False

    def __call__(self, round_):
        return Calibrated(round_.state)


@pytest.mark.parametrize("options", [{"spec": SPEC}, {"aligner": Identity(), "calibrators": (Doubling(),)}])
def test_a_strategy_that_returns_an_update_is_refused_in_the_first_round(options):
    with pytest.raises(FormError, match="Mean made an update of the updates"):
        final(Aligned(Mean(**COMMON), sends="update", **options), client_app(steps=1))


def test_an_update_that_is_taken_for_a_model_is_said_once_a_run():
    with heard() as warnings:
        final(FedRebasin(Adding(), spec=SPEC), client_app(steps=1), rounds=3)
    assert sum('sends="update"' in warning for warning in warnings) == 1
    assert any("is far shorter than the model" in warning for warning in warnings)
    for strategy, sends in (
        (FedRebasin(Adding(), spec=SPEC, sends="update"), "update"),
        (FedRebasin(spec=SPEC), "model"),
    ):
        with heard() as warnings:
            final(strategy, client_app(steps=1, sends=sends))
        assert not any("shorter" in warning for warning in warnings)


def test_the_app_as_it_is_under_identity_says_nothing(tmp_path):
    plain = run_app(serve, client_app(steps=1), tmp_path / "plain", unwrapped)
    same = run_app(serve, client_app(steps=1), tmp_path / "same", lambda one: Aligned(one, aligner=Identity()))
    assert same.files == plain.files
    assert same.warnings == plain.warnings
