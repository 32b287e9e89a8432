"""An app after the shape of Flower's TensorFlow example: a Keras model whose weights travel without names."""

import os

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, make_data, partition_of

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")


def load_model():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((4, 2, 1)),  # 8 numbers as a small image
            layers.Conv2D(6, 2, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(12, activation="relu"),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def images(partition):
    inputs, labels = make_data(partition)
    return inputs.numpy().reshape(-1, 4, 2, 1), labels.numpy()


app = ClientApp()


@app.train()
def train(message, context):
    model = load_model()
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    history = model.fit(*images(partition_of(context)), epochs=1, batch_size=16, shuffle=False, verbose=0)
    metrics = MetricRecord({"num-examples": 32, **{name: float(found[-1]) for name, found in history.history.items()}})
    return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    model = load_model()
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    loss, accuracy = model.evaluate(*images(100 + partition_of(context)), verbose=0)
    metrics = MetricRecord({"num-examples": 32, "loss": float(loss), "accuracy": float(accuracy)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def serve(grid, wrap, folder):
    result = wrap(FedAvg(min_available_nodes=CLIENTS)).start(
        grid, ArrayRecord(load_model().get_weights()), num_rounds=ROUNDS, train_config=ConfigRecord({"lr": 0.1})
    )
    model = load_model()
    model.set_weights(result.arrays.to_numpy_ndarrays())
    model.save(folder / "final_model.keras")
    return result


def find_spec():
    model, (inputs, _) = load_model(), images(0)

    def outputs(state):
        model.set_weights([state[str(number)] for number in range(len(state))])
        return keras.ops.convert_to_numpy(model(inputs[:4], training=False))

    moving = [str(number) for number, variable in enumerate(model.weights) if "moving" in variable.name]
    weights = {str(number): array for number, array in enumerate(model.get_weights())}
    return PermutationSpec.from_function(outputs, weights, statistics=moving)


def test_keras_clients_are_aligned_by_a_spec_that_testing_finds(tmp_path):
    spec = find_spec()
    assert sorted(group.size for group in spec.groups.values()) == [6, 12]
    assert "6[0: 3x(6)]" in str(spec)
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
    assert np.isfinite([array.numpy().sum() for array in ran.result.arrays.values()]).all()
