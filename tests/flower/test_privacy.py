"""Apps after the shape of Flower's differential privacy examples: wrappers on the server, clipping on the clients."""

import pytest
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fedrebasin.strategies import AlignMod
from tests.flower.harness import (
    CLIENTS,
    ROUNDS,
    assert_keeps_working,
    assert_same_form,
    central_evaluation,
    identity,
    make_net,
    run_app,
    spec_of,
    torch_client,
)

# Without noise: two noisy runs differ because of the noise.
WRAPPERS = {
    "fixed": lambda strategy: DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 1.0, CLIENTS),
    "adaptive": lambda strategy: DifferentialPrivacyServerSideAdaptiveClipping(strategy, 0.0, CLIENTS),
}


def serving(private):
    def serve(grid, wrap, folder):
        strategy = wrap(private(FedAvg(min_available_nodes=CLIENTS, min_train_nodes=CLIENTS)))
        arrays = ArrayRecord(make_net().state_dict())
        result = strategy.start(grid, arrays, num_rounds=ROUNDS, evaluate_fn=central_evaluation)
        norm = strategy.clipping_norm  # an attribute of the inner strategy
        (folder / "privacy.txt").write_text(f"clipped to {norm:.6f}")
        return result

    return serve


@pytest.mark.parametrize("private", WRAPPERS.values(), ids=WRAPPERS)
def test_privacy_on_the_server(private, tmp_path):
    ran = assert_keeps_working(serving(private), torch_client(), tmp_path)
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0


def clipping_client(*mods):
    """The client of the torch quickstart behind mods."""
    plain, app = torch_client(), ClientApp(mods=[fixedclipping_mod, *mods])
    app.train()(lambda message, context: plain(message, context))
    app.evaluate()(lambda message, context: plain(message, context))
    return app


def test_privacy_on_the_clients_with_the_alignment_there_too(tmp_path):
    serve = serving(lambda strategy: DifferentialPrivacyClientSideFixedClipping(strategy, 0.0, 1.0, CLIENTS))
    plain = run_app(serve, clipping_client(), tmp_path / "plain")
    aligning = run_app(serve, clipping_client(AlignMod(spec_of(make_net()))), tmp_path / "aligned", identity)
    assert_same_form(plain, aligning)
