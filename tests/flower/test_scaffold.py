"""After the shape of SCAFFOLD: model and control variate go out, and both come back (Karimireddy 2020)."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import Identity, Permutation
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, FedRebasin
from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    fit,
    make_data,
    make_net,
    partition_of,
    spec_of,
)

SPEC = spec_of(make_net())


class Scaffold(FedAvg):
    """Averages models as FedAvg does, and moves the server's control variate by the mean change of the clients'."""

    def __init__(self, folder=None, control="control"):
        super().__init__(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
        self.folder, self.name = folder, control
        self.control = None
        self.seen = []

    def configure_train(self, server_round, arrays, config, grid):
        if self.control is None:
            self.control = {key: np.zeros_like(array.numpy()) for key, array in arrays.items()}
        record = ArrayRecord({key: Array(values) for key, values in self.control.items()})
        for message in super().configure_train(server_round, arrays, config, grid):
            content = RecordDict({**message.content, self.name: record})
            yield Message(content, message.metadata.dst_node_id, message.metadata.message_type)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.seen = [dict(message.content.items()) for message in replies]
        changes = [message.content.pop(self.name) for message in replies]
        for key in self.control:
            self.control[key] = self.control[key] + sum(change[key].numpy() for change in changes) / len(changes)
        if self.folder is not None:
            sizes = {key: float(np.square(values).sum()) for key, values in self.control.items()}
            (self.folder / f"control-{server_round}.json").write_text(json.dumps(sizes))
        return super().aggregate_train(server_round, replies)


def client_app(control="control"):
    app = ClientApp()

    @app.train()
    def train(message, context):
        net, data = make_net(), make_data(partition_of(context))
        sent = message.content["arrays"].to_torch_state_dict()
        server = message.content[control].to_torch_state_dict()
        net.load_state_dict(sent)
        own = (
            context.state["own"].to_torch_state_dict()
            if "own" in context.state
            else {k: 0 * v for k, v in sent.items()}
        )
        loss = fit(net, data)
        after = {key: tensor - 0.01 * (server[key] - own[key]) for key, tensor in net.state_dict().items()}
        now = {key: own[key] - server[key] + (sent[key] - after[key]) / 0.5 for key in sent}
        context.state["own"] = ArrayRecord(now)
        change = ArrayRecord({key: now[key] - own[key] for key in sent})
        metrics = MetricRecord({"train-loss": loss, "num-examples": len(data[0])})
        content = RecordDict({"arrays": ArrayRecord(after), control: change, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def serve(grid, wrap, folder):
    strategy = wrap(Scaffold(folder))
    return strategy.start(grid, ArrayRecord(make_net().state_dict()), num_rounds=ROUNDS)


@pytest.mark.parametrize("frame", ["server", "client"])
def test_nothing_of_it_is_lost(tmp_path, frame):
    last = assert_keeps_working(
        serve, client_app(), tmp_path, lambda strategy: FedRebasin(strategy, spec=SPEC, frame=frame)
    )
    assert "control-2.json" in last.files
    assert not any("set aside" in warning for warning in last.warnings)


def planted(seed, control="control", names=None):
    """Clients that send one model and one control variate, each in an order of units of its own."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        order = Permutation.random(SPEC, torch.Generator().manual_seed(100 * seed + context.node_id))
        model, change = order.apply(make_net(seed + 1).state_dict()), order.apply(make_net(seed + 2).state_dict())
        record = ArrayRecord({(names or {}).get(key, key): change[key] for key in reversed(change)})
        content = RecordDict(
            {control: record, "arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    return app


def handed_on(seed, **options):
    inner = Scaffold()
    strategy = Aligned(inner, **options)
    grid = InlineGrid(planted(seed), CLIENTS)
    messages = strategy.configure_train(1, ArrayRecord(make_net().state_dict()), ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    return inner.seen


@pytest.mark.parametrize("seed", range(5))
def test_the_control_variate_moves_as_its_model_does(seed):
    """Whatever order of units a client has: what goes on is one model with one control variate."""
    seen = handed_on(seed, spec=SPEC)
    assert len(seen) == CLIENTS
    for key in make_net().state_dict():
        for name in ("arrays", "control"):
            first, *others = (records[name][key].numpy() for records in seen)
            assert all(np.array_equal(first, other) for other in others), (name, key)
    before = handed_on(seed, aligner=Identity())
    assert not np.array_equal(before[0]["control"]["0.weight"].numpy(), before[1]["control"]["0.weight"].numpy())
    assert list(seen[0]["control"]) == list(before[0]["control"])  # its own keys in their own order


@pytest.mark.parametrize("seed", range(3))
def test_nodes_with_an_order_of_their_own_are_sent_both_in_it(seed):
    """With ``frame="client"`` the server's control variate reaches a node in the order in which its model does."""
    start = make_net(seed)
    state = {key: tensor.clone() for key, tensor in start.state_dict().items()}
    orders = {node + 1: Permutation.random(SPEC, torch.Generator().manual_seed(seed + node)) for node in range(CLIENTS)}
    received = {}
    app = ClientApp()

    @app.train()
    def train(message, context):
        received[context.node_id] = {
            name: record.to_torch_state_dict() for name, record in message.content.array_records.items()
        }
        return Message(RecordDict(), reply_to=message)

    from fedrebasin.strategies import Frames

    inner = Scaffold()
    inner.control = {key: tensor.numpy() * 2 for key, tensor in state.items()}
    strategy = Aligned(inner, spec=SPEC, frame=Frames(by_node=orders))
    grid = InlineGrid(app, CLIENTS)
    grid.send_and_receive(strategy.configure_train(1, ArrayRecord(state), ConfigRecord(), grid))
    for node, records in received.items():
        own = orders[node].inverse().apply(state)
        for key, tensor in own.items():
            assert torch.equal(records["arrays"][key], tensor)
            assert torch.equal(records["control"][key], 2 * tensor)
