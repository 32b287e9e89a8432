"""Apps after the shape of Flower's differential privacy examples, with their noise: on clients or on the server."""

import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedrebasin.strategies import AlignMod
from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    assert_same,
    assert_same_form,
    central_evaluation,
    identity,
    make_net,
    run_app,
    spec_of,
    torch_client,
)


def serving(private, seed):
    """A server that writes what privacy it has promised; Flower draws its noise from NumPy's global generator."""

    def serve(grid, wrap, folder):
        np.random.seed(seed)
        strategy = wrap(private(FedAvg(min_available_nodes=CLIENTS, min_train_nodes=CLIENTS)))
        result = strategy.start(
            grid,
            ArrayRecord(make_net().state_dict()),
            num_rounds=ROUNDS,
            train_config=ConfigRecord({"lr": 0.1}),
            evaluate_fn=central_evaluation,
        )
        (folder / "budget.json").write_text(json.dumps({"rounds": len(result.train_metrics_clientapp)}))
        return result

    return serve


def local_client(*mods):
    """The client of the torch quickstart behind mods of its training alone: Flower's read training messages only."""
    plain, app = torch_client(), ClientApp()
    app.train(mods=list(mods))(lambda message, context: plain(message, context))
    app.evaluate()(lambda message, context: plain(message, context))
    return app


def noise(epsilon=100.0):
    return LocalDpMod(clipping_norm=1.0, sensitivity=1e-3, epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_noise_on_the_server_is_the_same_noise(seed, tmp_path):
    serve = serving(lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.01, 1.0, CLIENTS), seed)
    ran = assert_keeps_working(serve, torch_client(), tmp_path)
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_noise_on_the_clients_comes_before_or_after_alignment(seed, tmp_path):
    """Aligned on the server the noise is permuted with its units; aligned by the client it is added afterwards."""
    serve = serving(lambda inner: inner, seed)
    on_server = assert_keeps_working(serve, local_client(noise()), tmp_path)
    assert on_server.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
    plain = run_app(serve, local_client(noise()), tmp_path / "not aligned")
    aligning = local_client(noise(), AlignMod(spec_of(make_net())))
    on_clients = run_app(serve, aligning, tmp_path / "on the clients")
    assert_same_form(plain, on_clients)
    assert_same(on_clients, run_app(serve, aligning, tmp_path / "wrapped", identity))
