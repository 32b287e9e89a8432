"""An app after the shape of Flower's JAX example: a tree of parameters, and a jitted step of training."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, make_data, partition_of

jax = pytest.importorskip("jax")


def initial(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "hidden": {"kernel": 0.5 * jax.random.normal(keys[0], (8, 16)), "bias": np.zeros(16, "float32")},
        "head": {"kernel": 0.5 * jax.random.normal(keys[1], (16, 4)), "bias": np.zeros(4, "float32")},
    }


TREE = jax.tree_util.tree_structure(initial())
NAMES = [f"{layer}.{kind}" for layer in ("head", "hidden") for kind in ("bias", "kernel")]  # as JAX sorts them


@jax.jit
def logits(params, inputs):
    hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


@jax.jit
def step(params, inputs, labels, lr):
    def loss(params):
        chosen = jax.nn.log_softmax(logits(params, inputs))
        return -chosen[np.arange(len(labels)), labels].mean()

    value, gradient = jax.value_and_grad(loss)(params)
    return value, jax.tree_util.tree_map(lambda one, slope: one - lr * slope, params, gradient)


def leaves(params):
    """The tree as a state dict."""
    found = jax.tree_util.tree_leaves(params)
    return {name: np.asarray(leaf) for name, leaf in zip(NAMES, found, strict=True)}


def to_record(params):
    return ArrayRecord({name: Array(leaf) for name, leaf in leaves(params).items()})


def to_params(arrays):
    return jax.tree_util.tree_unflatten(TREE, [jax.numpy.asarray(arrays[name], "float32") for name in NAMES])


def numbers(partition):
    inputs, labels = make_data(partition)
    return inputs.numpy(), labels.numpy()


def received(message):
    return to_params({name: array.numpy() for name, array in message.content["arrays"].items()})


app = ClientApp()


@app.train()
def train(message, context):
    params, (inputs, labels) = received(message), numbers(partition_of(context))
    for _ in range(int(message.content["config"]["steps"])):
        loss, params = step(params, inputs, labels, 0.5)
    metrics = MetricRecord({"num-examples": len(inputs), "train-loss": float(loss)})
    return Message(RecordDict({"arrays": to_record(params), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    inputs, labels = numbers(100 + partition_of(context))
    found = logits(received(message), inputs)
    right = float((np.asarray(found).argmax(1) == labels).mean())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 32, "accuracy": right})}), reply_to=message)


def serve(grid, wrap, folder):
    result = wrap(FedAvg(min_available_nodes=CLIENTS)).start(
        grid, to_record(initial()), num_rounds=ROUNDS, train_config=ConfigRecord({"steps": 5})
    )
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in result.arrays.items()})
    history = {number: dict(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()}
    (folder / "history.json").write_text(json.dumps(history))
    return result


def test_jax_clients_are_aligned_by_a_spec_that_testing_finds(tmp_path):
    inputs = numbers(0)[0][:4]
    spec = PermutationSpec.from_function(lambda state: logits(to_params(state), inputs), leaves(initial()))
    assert [group.size for group in spec.groups.values()] == [16]
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
    assert ran.warnings == ()
