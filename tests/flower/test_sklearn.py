"""An app after the shape of Flower's scikit-learn examples: coefficients in a list, and a scaler agreed on first."""

import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, make_data, partition_of


def make_classifier():
    """scikit-learn's, with 16 hidden units, once around so that it has coefficients."""
    neural_network = pytest.importorskip("sklearn.neural_network")
    model = neural_network.MLPClassifier((16,), solver="sgd", learning_rate_init=0.1, shuffle=False, random_state=0)
    return model.partial_fit(np.zeros((4, 8)), np.arange(4), classes=np.arange(4))


def coefficients(model):
    return [*model.coefs_, *model.intercepts_]


def loaded(message):
    model, arrays = make_classifier(), message.content["arrays"].to_numpy_ndarrays()
    model.coefs_, model.intercepts_ = [np.array(one) for one in arrays[:2]], [np.array(one) for one in arrays[2:]]
    return model


def table(partition, config):
    """Standardised as the clients have agreed."""
    inputs, labels = make_data(partition)
    return (inputs.double().numpy() - config["mean"]) / config["deviation"], labels.numpy()


app = ClientApp()


@app.query("moments")
def moments(message, context):
    inputs = make_data(partition_of(context))[0].double().numpy()
    sums = {"count": len(inputs), "sum": inputs.sum(0).tolist(), "squares": (inputs**2).sum(0).tolist()}
    return Message(RecordDict({"moments": MetricRecord(sums)}), reply_to=message)


@app.train()
def train(message, context):
    model, (inputs, labels) = loaded(message), table(partition_of(context), message.content["config"])
    for _ in range(3):
        model.partial_fit(inputs, labels)
    metrics = MetricRecord({"num-examples": len(inputs), "train-loss": float(model.loss_)})
    return Message(RecordDict({"arrays": ArrayRecord(coefficients(model)), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    score = loaded(message).score(*table(100 + partition_of(context), message.content["config"]))
    metrics = MetricRecord({"num-examples": 32, "accuracy": float(score)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def scaler(grid):
    """The mean and the deviation of all clients' columns, from sums."""
    asked = [Message(RecordDict(), node, "query.moments") for node in grid.get_node_ids()]
    found = [reply.content["moments"] for reply in grid.send_and_receive(asked)]
    count = sum(one["count"] for one in found)
    mean, squares = (sum(np.array(one[name]) for one in found) / count for name in ("sum", "squares"))
    return {"mean": mean.tolist(), "deviation": np.sqrt(squares - mean**2).tolist()}


def serve(grid, wrap, folder):
    scaling = scaler(grid)
    (folder / "scaler.json").write_text(json.dumps(scaling))
    return wrap(FedAvg(min_available_nodes=CLIENTS)).start(
        grid,
        ArrayRecord(coefficients(make_classifier())),
        num_rounds=ROUNDS,
        train_config=ConfigRecord(scaling),
        evaluate_config=ConfigRecord(scaling),
    )


def find_spec():
    inputs = make_data(0)[0].double().numpy()[:6]

    def logits(state):
        return np.maximum(inputs @ state["0"] + state["2"], 0) @ state["1"] + state["3"]

    arrays = {str(number): array for number, array in enumerate(coefficients(make_classifier()))}
    return PermutationSpec.from_function(logits, arrays)


def test_a_classifier_of_scikit_learn_is_aligned_by_its_formula(tmp_path):
    spec = find_spec()
    assert {str(axis) for axis in spec.groups["0[1]"].axes} == {"0[1]", "2[0]", "1[0]"}
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
