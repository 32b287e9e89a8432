"""Adapters on a base that all clients share and nobody trains; and a head alone on a frozen body."""

import warnings

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, assert_keeps_working, heard, make_data
from tests.flower.personal import in_frame, personal_app, sender


def test_copies_of_adapters_in_any_order_of_their_ranks_are_one():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        settings = peft.LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False)
        model = peft.get_peft_model(base, settings).eval()
    spec = PermutationSpec.trace(model, torch.zeros(2, 8))
    adapters = {key: tensor.detach().clone() for key, tensor in peft.get_peft_model_state_dict(model).items()}

    def outputs(state):
        peft.set_peft_model_state_dict(model, state)
        with torch.no_grad():
            return model(make_data(0)[0])

    app = ClientApp()

    @app.train()
    def train(message, context):
        own = spec.rename_like(adapters).restrict(adapters)
        moved = Permutation.random(own, torch.Generator().manual_seed(context.node_id)).apply(adapters)
        content = {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    def error(strategy):
        start = {key: torch.zeros_like(tensor) if "lora_B" in key else tensor for key, tensor in adapters.items()}
        result = strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(start), num_rounds=1)
        return float((outputs(result.arrays.to_torch_state_dict()) - outputs(adapters)).abs().max())

    strategy = FedRebasin(FedAvg(), spec=spec)
    with heard() as lines:
        assert error(strategy) < 1e-5
    assert error(FedAvg()) > 0.1
    assert sorted((group.size, group.frozen) for group in strategy.spec.groups.values()) == [
        (4, False),
        (4, False),
        (16, True),
    ]
    assert "base_layer.weight" in lines[0]
    assert "are frozen: " in lines[0]


def body(key):
    """What is the same on all clients, and is not sent."""
    return key.startswith("body.")


def test_a_head_alone_has_nothing_to_align(tmp_path):
    ran = assert_keeps_working(sender(False, body), personal_app(False, body), tmp_path, in_frame(False, "server"))
    assert set(ran.result.arrays) == {"head.weight", "head.bias"}
    assert "none is left to align: body.2 (with body.2.weight)" in ran.warnings[0]
