"""The ServerApp of ``flwr run .`` in this process: its run config, its files, its refusals."""

import importlib

import pytest

from fedrebasin import RebasinError
from fedrebasin.simulations import make_client_app, read_results, run_inline

server_app = importlib.import_module("fedrebasin.simulations.app.server").app  # as Flower finds it
QUICK = {"width": 8.0, "clients": 2, "local-epochs": 1, "strategy": "fedavg"}


def test_results_go_to_out(tmp_path):
    run_inline(server_app, make_client_app(), 2, {**QUICK, "out": str(tmp_path / "out"), "rounds": 2})
    (found,) = read_results(tmp_path / "out").comparisons
    assert [row.round for row in found.rows] == [1, 2]
    assert (found.config.clients, found.strategies) == (2, ("fedavg",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strategy": "fedvag"}, "did you mean fedavg"),
        ({"partition": "even"}, "choose from iid"),
        ({"out": "relative/path"}, "absolute path"),
        ({"clients": 1}, "the federation has 2 nodes where the simulation has 1 clients: flwr run"),
    ],
)
def test_a_wrong_run_config_ends_the_run_with_one_line(wrong, message):
    with pytest.raises(RebasinError, match=message):
        run_inline(server_app, make_client_app(), 2, QUICK | wrong)
