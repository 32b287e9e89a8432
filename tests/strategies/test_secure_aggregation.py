"""SecAgg+ as Flower has it: the legacy workflow, whose arrays carry positions for names, around an aligning client."""

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
from tests.strategies.helpers import AXES, make_state

CLIENTS = 4
START = make_state(0, width=12, integers=False)
SPEC = PermutationSpec.from_axes(AXES)


def trained(node):
    """The start with a little noise."""
    generator = torch.Generator().manual_seed(node)
    return {key: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for key, tensor in START.items()}


def make_app(mods, seen):
    """Clients whose units are in an order of their own when training ends, with what the legacy server reads."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message, context):
        node = int(context.node_config["partition-id"])
        received = message.content["fitins.parameters"]
        seen.append(list(received))
        state = trained(node)
        moved = Permutation.random(SPEC.bind(state), torch.Generator().manual_seed(node)).apply(state)
        numbered = {str(position): tensor for position, tensor in enumerate(moved.values())}
        content = {
            "fitres.parameters": ArrayRecord(numbered),
            "fitres.num_examples": MetricRecord({"num_examples": 10}),
            "fitres.metrics": ConfigRecord(),
            "fitres.status": ConfigRecord({"code": 0, "message": ""}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def run(align):
    """One round of the legacy workflow; the sum is all that the server comes to know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.client.mod import secaggplus_mod
        from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.server import LegacyContext, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

        seen = []
        grid = InlineGrid(make_app([secaggplus_mod, *([AlignMod(SPEC)] if align else [])], seen), CLIENTS)
        grid.set_run(SimpleNamespace(run_id=1))
        final = []

        def keep(server_round, arrays, config):
            final[:] = arrays

        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=CLIENTS,
            min_available_clients=CLIENTS,
            evaluate_fn=keep,
            initial_parameters=ndarrays_to_parameters([tensor.numpy() for tensor in START.values()]),
        )
        context = LegacyContext(
            Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            config=ServerConfig(num_rounds=1),
            strategy=strategy,
        )
        secure = SecAggPlusWorkflow(num_shares=CLIENTS, reconstruction_threshold=3, clipping_range=4.0)
        DefaultWorkflow(fit_workflow=secure)(grid, context)
        assert parameters_to_ndarrays is not None
    return dict(zip(START, final, strict=True)), seen


@pytest.mark.parametrize("align", [True, False])
def test_the_sum_is_of_aligned_models(align):
    merged, seen = run(align)
    assert seen
    assert all(keys == [str(position) for position in range(len(START))] for keys in seen)
    mean = {key: np.mean([trained(node)[key].numpy() for node in range(CLIENTS)], axis=0) for key in START}
    distance = max(float(np.abs(merged[key] - mean[key]).max()) for key in START)
    assert (distance < 0.01) == align  # SecAgg+ rounds to 2^-20 of its range or so
