"""An app after the shape of Flower's secure aggregation example: the server sees sums only, so clients align."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import AlignMod
from tests.flower.harness import ROUNDS, fit, make_data, make_net, partition_of, score, spec_of

CLIENTS = 4
KEYS = list(make_net().state_dict())


def client(*mods, shuffled=False):
    """Trains like the torch quickstart; SecAgg+ is Flower's legacy protocol, whose arrays carry numbers for names."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        net, data = make_net(), make_data(partition_of(context))
        arrays = message.content["fitins.parameters"].to_numpy_ndarrays()
        net.load_state_dict({key: torch.tensor(array) for key, array in zip(KEYS, arrays, strict=True)})
        loss, state = fit(net, data), net.state_dict()
        if shuffled:
            generator = torch.Generator().manual_seed(partition_of(context))
            state = Permutation.random(spec_of(net), generator).apply(state)
        content = {
            "fitres.parameters": ArrayRecord([tensor.numpy() for tensor in state.values()]),
            "fitres.num_examples": MetricRecord({"num_examples": len(data[0])}),
            "fitres.metrics": ConfigRecord({"loss": loss}),
            "fitres.status": ConfigRecord({"code": 0, "message": ""}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def run(folder, *mods, shuffled=False):
    """Two rounds of the workflow; the server keeps its models and writes down what it finds on its own data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.client.mod import secaggplus_mod
        from flwr.common import ndarrays_to_parameters
        from flwr.server import LegacyContext, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

        folder.mkdir()
        models, found = [], []

        def evaluate(server_round, arrays, config):
            net = make_net()
            net.load_state_dict({key: torch.tensor(array) for key, array in zip(KEYS, arrays, strict=True)})
            models.append(arrays)
            metrics = score(net, make_data(500, 256))
            found.append({"round": server_round, **metrics})
            (folder / "history.json").write_text(json.dumps(found))
            return metrics["loss"], {"accuracy": metrics["accuracy"]}

        grid = InlineGrid(client(secaggplus_mod, *mods, shuffled=shuffled), CLIENTS)
        grid.set_run(SimpleNamespace(run_id=1))
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=CLIENTS,
            min_available_clients=CLIENTS,
            evaluate_fn=evaluate,
            initial_parameters=ndarrays_to_parameters([tensor.numpy() for tensor in make_net().state_dict().values()]),
        )
        context = LegacyContext(
            Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            config=ServerConfig(num_rounds=ROUNDS),
            strategy=strategy,
        )
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=CLIENTS, reconstruction_threshold=3))(grid, context)
    return models, json.loads((folder / "history.json").read_text())


@pytest.fixture(scope="module")
def spec() -> PermutationSpec:
    return spec_of(make_net())


def test_clients_that_are_in_order_give_the_same_sums_with_the_mod(tmp_path, spec):
    plain, before = run(tmp_path / "plain")
    aligned, after = run(tmp_path / "aligned", AlignMod(spec))
    assert [one["round"] for one in after] == [one["round"] for one in before] == [0, 1, 2]
    for one, other in zip(plain, aligned, strict=True):
        for array, expected in zip(other, one, strict=True):
            np.testing.assert_allclose(array, expected, atol=1e-3)  # of what SecAgg+ rounds to


def test_clients_whose_units_are_shuffled_are_summed_in_one_order(tmp_path, spec):
    _, plain = run(tmp_path / "plain", shuffled=True)
    _, aligned = run(tmp_path / "aligned", AlignMod(spec), shuffled=True)
    _, right = run(tmp_path / "right")
    assert aligned[-1]["loss"] == pytest.approx(right[-1]["loss"], abs=0.02)
    assert plain[-1]["loss"] > right[-1]["loss"] + 0.05
