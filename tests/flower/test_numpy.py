"""Apps after the shape of Flower's NumPy quickstart and others: arrays without names, or with a wrapper's."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    fit,
    make_data,
    make_net,
    partition_of,
)


class Task(nn.Module):
    """A model with the network as an attribute, as training frameworks wrap it."""

    def __init__(self):
        super().__init__()
        self.model = make_net()

    def forward(self, inputs):
        return self.model(inputs)


NAMED = {"by position": make_net, "inside of another": Task}


def to_record(task):
    state = task.state_dict()
    return ArrayRecord(state) if isinstance(task, Task) else ArrayRecord([tensor.numpy() for tensor in state.values()])


def load(task, record):
    arrays = record.to_torch_state_dict()
    task.load_state_dict(dict(zip(task.state_dict(), arrays.values(), strict=True)))
    return task


def client(make):
    app = ClientApp()

    @app.train()
    def train(message, context):
        task, data = load(make(), message.content["arrays"]), make_data(partition_of(context))
        loss = fit(task, data)
        metrics = MetricRecord({"num-examples": len(data[0]), "loss": loss})
        return Message(RecordDict({"arrays": to_record(task), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        norms = [float(np.linalg.norm(array.numpy())) for array in message.content["arrays"].values()]
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "norms": norms})}), reply_to=message)

    return app


@pytest.mark.parametrize("make", NAMED.values(), ids=NAMED)
def test_the_spec_of_the_network_is_found_under_other_names(make, tmp_path):
    def serve(grid, wrap, folder):
        result = wrap(FedAvg(min_available_nodes=CLIENTS)).start(grid, to_record(make()), num_rounds=ROUNDS)
        np.savez(folder / "model.npz", *[array.numpy() for array in result.arrays.values()])
        return result

    ran = assert_keeps_working(serve, client(make), tmp_path)
    assert list(ran.result.arrays) == list(to_record(make()))
    assert ran.metrics["train_metrics_clientapp"][1]["rebasin-similarity"] > 0.5
