"""Trees under Identity: boosted trees as bytes that grow, with Flower's own bagging and with one that users wrote."""

import json
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedXgbBagging

from tests.flower.harness import ROUNDS, assert_same, identity, partition_of, run_app, streamed


class Forest(FedAvg):
    """Appends every client's trees to its own: a JSON list in an array of bytes, which grows each round."""

    def __init__(self, folder):
        super().__init__(fraction_evaluate=0.0, weighted_by_key="rows")
        self.folder, self.trees = folder, []

    def aggregate_train(self, server_round, replies):
        for message in replies:
            self.trees += json.loads(message.content["trees"]["forest"].numpy().tobytes())
        (self.folder / f"forest-{server_round}.json").write_text(json.dumps(self.trees))
        packed = np.frombuffer(json.dumps(self.trees).encode(), dtype=np.uint8)
        return ArrayRecord({"forest": Array(packed)}), MetricRecord({"trees": len(self.trees)})


def forest_app():
    app = ClientApp()

    @app.train()
    def train(message, context):
        sent = message.content["arrays"]["forest"].numpy().tobytes()
        depth = len(json.loads(sent or b"[]"))
        trees = [{"from": partition_of(context), "depth": depth, "pad": "x" * partition_of(context)}]
        packed = np.frombuffer(json.dumps(trees).encode(), dtype=np.uint8)
        content = {"trees": ArrayRecord({"forest": Array(packed)}), "metrics": MetricRecord({"rows": 5})}
        return Message(RecordDict(content), reply_to=message)

    return app


def serve_forest(grid, wrap, folder):
    empty = ArrayRecord({"forest": Array(np.frombuffer(b"", dtype=np.uint8))})
    return wrap(Forest(folder)).start(grid, empty, num_rounds=ROUNDS)


def model_of(trees):
    """A boosted model as XGBoost's JSON has it, of what Flower's bagging reads."""
    booster = {
        "gbtree_model_param": {"num_trees": str(trees), "num_parallel_tree": "1"},
        "iteration_indptr": list(range(trees + 1)),
        "trees": [{"id": number, "leaf": [0.5]} for number in range(trees)],
        "tree_info": [0] * trees,
    }
    return json.dumps({"learner": {"gradient_booster": {"model": booster}}}).encode()


def xgboost_app():
    app = ClientApp()

    @app.train()
    def train(message, context):
        sent = message.content["arrays"]["0"].numpy().tobytes()
        assert sent == b"" or json.loads(sent)
        arrays = ArrayRecord([np.frombuffer(model_of(1), dtype=np.uint8)])
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 7})}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        trees = len(
            json.loads(message.content["arrays"]["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"][
                "trees"
            ]
        )
        metrics = MetricRecord({"trees": float(trees), "num-examples": 7})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def serve_xgboost(grid, wrap, folder):
    empty = ArrayRecord([np.frombuffer(b"", dtype=np.uint8)])
    config = ConfigRecord({"eta": 0.1})
    result = wrap(FedXgbBagging()).start(grid, empty, num_rounds=ROUNDS, train_config=config)
    (folder / "model.json").write_bytes(result.arrays["0"].numpy().tobytes())
    return result


@pytest.mark.parametrize(("serve", "make"), [(serve_forest, forest_app), (serve_xgboost, xgboost_app)])
def test_trees_pass_as_they_are(tmp_path, serve, make):
    plain = run_app(serve, make(), tmp_path / "plain")
    wrapped = run_app(serve, make(), tmp_path / "identity", identity)
    assert_same(plain, wrapped)
    assert wrapped.warnings == plain.warnings
    assert len(plain.result.arrays) == 1
    one_by_one = run_app(serve, make(), tmp_path / "streamed", streamed)  # trees in the order in which they arrive
    for name, content in plain.files.items():
        assert Counter(json.dumps(one_by_one.files[name])) == Counter(json.dumps(content))
