"""An app after the shape of Flower's tabular and custom metrics examples: own records, metrics and mods."""

import json

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin.strategies import FedRebasin
from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    assert_same_form,
    fit,
    identity,
    make_data,
    partition_of,
    run_app,
    spec_of,
)


def make_table_net():
    """Age, income and six more columns in, two classes out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(8, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(24, 12),
            nn.ReLU(),
            nn.Linear(12, 2),
        )


def counted(message, context, call_next):
    """A mod that counts a client's messages in its state, and says so in the reply."""
    counts = context.state.config_records.setdefault("calls", ConfigRecord({"count": 0}))
    counts["count"] = int(counts["count"]) + 1
    reply = call_next(message, context)
    reply.content["metrics"]["calls"] = int(counts["count"])
    return reply


app = ClientApp(mods=[counted])


def load(message, context):
    net = make_table_net()
    net.load_state_dict(message.content["model"].to_torch_state_dict())
    inputs, classes = make_data(partition_of(context))
    return net, (inputs, classes % 2)


@app.train()
def train(message, context):
    net, data = load(message, context)
    torch.manual_seed(partition_of(context))
    loss = fit(net.train(), data, lr=message.content["settings"]["lr"])
    per_class = torch.bincount(data[1], minlength=2).tolist()
    metrics = MetricRecord({"rows": len(data[0]), "loss": loss, "per-class": per_class})
    return Message(RecordDict({"model": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    net, (inputs, classes) = load(message, context)
    with torch.no_grad():
        right = (net.eval()(inputs).argmax(1) == classes).float().mean()
    return Message(
        RecordDict({"metrics": MetricRecord({"rows": len(inputs), "accuracy": float(right)})}), reply_to=message
    )


def worst(contents, weighted_by):
    """Metrics joined in a way of one's own: the worst client counts."""
    records = [next(iter(content.metric_records.values())) for content in contents]
    return MetricRecord({"worst-loss": max(record["loss"] for record in records), "weighted-by": len(weighted_by)})


class Recording(FedAvg):
    """Keeps what each client said."""

    def __init__(self, folder, **options):
        super().__init__(**options)
        self.folder, self.said = folder, []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            metrics = reply.content["metrics"]
            self.said.append([server_round, reply.metadata.src_node_id, metrics["per-class"], metrics["calls"]])
        return super().aggregate_train(server_round, replies)

    def save(self):
        (self.folder / "clients.json").write_text(json.dumps(self.said))


def serve(grid, wrap, folder):
    strategy = wrap(
        Recording(
            folder,
            weighted_by_key="rows",
            arrayrecord_key="model",
            configrecord_key="settings",
            train_metrics_aggr_fn=worst,
            min_available_nodes=CLIENTS,
        )
    )
    arrays, settings = ArrayRecord(make_table_net().state_dict()), ConfigRecord({"lr": 0.05})
    result = strategy.start(grid, arrays, num_rounds=ROUNDS, train_config=settings, evaluate_config=settings)
    strategy.save()
    return result


def test_what_each_client_said_is_written_down(tmp_path):
    spec = spec_of(make_table_net().eval())
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    said = ran.files["clients.json"]
    assert [row[:2] for row in said] == [[number, node] for number in (1, 2) for node in (1, 2, 3)]
    assert [row[3] for row in said] == [1, 1, 1, 3, 3, 3]  # with an evaluation between
    assert ran.metrics["train_metrics_clientapp"][1]["weighted-by"] == 4


@pytest.mark.slow
@pytest.mark.engine
def test_on_flowers_engine(tmp_path):
    """Where clients are other processes, and only their state lasts."""
    plain = run_app(serve, app, tmp_path / "plain", engine="flower")
    wrapped = run_app(serve, app, tmp_path / "identity", identity, engine="flower")
    assert_same_form(plain, wrapped)
    assert sorted(row[3] for row in wrapped.files["clients.json"]) == [1, 1, 1, 3, 3, 3]
