"""The tables of docs/strategies-and-orders.md, row by row."""

import logging
import re
from pathlib import Path

import flwr.clientapp.mod
import flwr.serverapp.strategy
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedrebasin.strategies
from fedrebasin import AlignTo, Identity, Permutation, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, TemperatureCalibration
from tests.strategies.helpers import AXES, make_state

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies-and-orders.md"
ROW = re.compile(r"^\| `(?P<server>[^|]+)` \|(?: `(?P<mods>\[[^|]*\])` \|)? (?P<result>works|refused: .*) \|$", re.M)
ROWS = [(match["server"], match["mods"] or "[]", match["result"]) for match in ROW.finditer(PAGE.read_text())]

N = 7
START = make_state(0, width=12, integers=False)
SPEC = PermutationSpec.from_axes(AXES)
NAMES = {
    **{name: getattr(flwr.serverapp.strategy, name) for name in flwr.serverapp.strategy.__all__},
    **{
        name.replace("DifferentialPrivacy", "DP"): getattr(flwr.serverapp.strategy, name)
        for name in flwr.serverapp.strategy.__all__
        if name.startswith("DifferentialPrivacy")
    },
    **{name: getattr(flwr.clientapp.mod, name) for name in flwr.clientapp.mod.__all__},
    **{name: getattr(fedrebasin.strategies, name) for name in fedrebasin.strategies.__all__},
    "AlignTo": AlignTo,
    "Identity": Identity,
    "spec": SPEC,
    "state": START,
    "n": N,
}


def make_app(mods):
    """Clients that add a little noise to the global model; some of them give their units another order."""
    app = ClientApp()

    @app.train(mods=mods)
    def train(message, context):
        node = int(context.node_config["partition-id"])
        generator = torch.Generator().manual_seed(node)
        state = message.content["arrays"].to_torch_state_dict()
        near = {key: t.float() + 0.01 * torch.randn(t.shape, generator=generator) for key, t in state.items()}
        moved = Permutation.random(SPEC.bind(near), generator).apply(near) if node < 3 else near
        metrics = MetricRecord({"num-examples": 5, "train-loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(dict(moved)), "metrics": metrics}), reply_to=message)

    return app


def test_every_row_of_the_page_is_read():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(ROWS) > 30
    built_in = set(flwr.serverapp.strategy.__all__)
    array_strategies = {
        name for name in built_in if name.startswith(("Fed", "QFed", "Krum", "Multi", "Bulyan", "Diff"))
    }
    without_arrays = {name for name in array_strategies if name.startswith("FedXgb")}
    shown = " ".join(server.replace("DP", "DifferentialPrivacy") for server, _, _ in ROWS)
    assert {name for name in array_strategies - without_arrays if f"{name}(" not in shown} == set()


@pytest.mark.parametrize(("server", "mods", "result"), ROWS, ids=[f"{server} {mods}" for server, mods, _ in ROWS])
def test_the_order_does_what_the_page_says(server, mods, result, caplog):
    caplog.set_level(logging.INFO, logger="flwr")
    logging.getLogger("flwr").propagate = True

    def run():
        common = {"fraction_evaluate": 0.0, "min_train_nodes": N, "min_available_nodes": N}
        strategy = eval(server, dict(NAMES))
        innermost = strategy
        while hasattr(innermost, "strategy"):
            innermost = innermost.strategy
        vars(innermost).update(common)
        grid = InlineGrid(make_app(eval(mods, dict(NAMES))), N)
        return strategy.start(grid, ArrayRecord(START), num_rounds=2 if "frame" in server else 1)

    if result == "works":
        arrays = run().arrays
        for key, tensor in START.items():
            values = arrays[key].numpy()
            assert values.shape == tuple(tensor.shape)
            assert np.isfinite(values).all()
            if "Adapt" not in server and not re.search("LocalDp|FedAd|FedYogi|QFed", server + mods):
                assert np.abs(values - tensor.numpy()).max() < 0.6, "the units are where the server has them"
        return
    reason = result.removeprefix("refused: ")
    if mods.startswith("[AlignMod"):  # a client that refuses answers with an error: there is nothing to aggregate
        assert not run().arrays
        assert reason in caplog.text
    else:
        with pytest.raises(RebasinError, match=re.escape(reason)):
            run()


def test_calibration_on_server_data_may_follow_the_noise():
    private = NAMES["DPServerSideFixedClipping"](NAMES["FedAvg"](), 0.1, 1.0, N)
    model = torch.nn.Linear(4, 3)
    Aligned(
        private, spec=SPEC, calibrators=[TemperatureCalibration(model, [(torch.zeros(2, 4), torch.zeros(2).long())])]
    )
    with pytest.raises(RebasinError, match="carries no noise"):
        Aligned(private, spec=SPEC, calibrators=[TemperatureCalibration()])


def test_batches_without_a_model_are_refused():
    with pytest.raises(RebasinError, match="needs model="):
        TemperatureCalibration(batches=[])
