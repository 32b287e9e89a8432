"""The in-process grid: order, errors, silence, and nothing shared between the server and its clients."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin.simulations import InlineGrid, run_inline


@pytest.fixture
def app():
    """Clients that add 1 + their partition to every array; partition 3 raises when it is there."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        if partition == 3:
            raise ValueError("no data")
        arrays = message.content["arrays"]
        for key in list(arrays):
            arrays[key] = Array(arrays[key].numpy() + 1 + partition)
        metrics = MetricRecord({"num-examples": 1, "seen": context.node_config["num-partitions"]})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def initial():
    return ArrayRecord({"w": Array(np.zeros(2, np.float32))})


def test_fedavg_averages_what_the_clients_return(app):
    arrays = initial()
    result = FedAvg(fraction_evaluate=0.0).start(InlineGrid(app, 3), arrays, num_rounds=2)
    assert result.arrays["w"].numpy().tolist() == [4.0, 4.0]
    assert result.train_metrics_clientapp[1]["seen"] == 3
    assert arrays["w"].numpy().tolist() == [0.0, 0.0]


def test_replies_come_in_the_order_of_the_nodes_and_errors_are_replies(app):
    grid = InlineGrid(app, 4)
    messages = [Message(RecordDict({"arrays": initial()}), node, "train") for node in (4, 2, 1)]
    replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 4]
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert replies[2].error.reason == "ValueError: no data"
    assert messages[1].content["arrays"]["w"].numpy().tolist() == [0.0, 0.0]


def test_a_silent_client_and_a_reply_pulled_once():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return None if context.node_config["partition-id"] else Message(RecordDict(), reply_to=message)

    grid = InlineGrid(app, 2)
    ids = grid.push_messages([Message(RecordDict(), node, "train") for node in (1, 2)])
    assert len(grid.pull_messages(ids)) == 1
    assert grid.pull_messages(ids) == []


def test_an_app_runs_with_its_run_config(app):
    seen = {}
    server_app = ServerApp()

    @server_app.main()
    def main(grid, context):
        seen.update(context.run_config, nodes=len(list(grid.get_node_ids())))

    run_inline(server_app, app, 4, {"rounds": 2})
    assert seen == {"rounds": 2, "nodes": 4}
