"""FedPer (Arivazhagan 2019): the body is averaged, every client keeps a head of its own."""

import pytest

from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, run_app
from tests.flower.personal import Strangers, in_frame, personal_app, sender


def head(key):
    """What stays with the clients."""
    return key.startswith("head.")


SERVE = sender(False, head)


@pytest.mark.parametrize("frame", ["server", "client"])
def test_the_wrapped_app_leaves_the_same_behind(frame, tmp_path):
    ran = assert_keeps_working(SERVE, personal_app(False, head), tmp_path, in_frame(False, frame))
    assert set(ran.result.arrays) == {f"body.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert ran.metrics["train_metrics_clientapp"][ROUNDS]["rebasin-replies-set-aside"] == 0
    said = [line for line in ran.warnings if "stay with the clients" in line]
    assert ["body.2 (with head.weight)" in line and 'frame="client"' in line for line in said] == [True] * (
        frame == "server"
    )


def test_bodies_of_any_order_fit_their_heads_in_the_nodes_own_frames(tmp_path):
    clients = Strangers(False, head)
    run_app(SERVE, clients.app, tmp_path / "client", in_frame(False, "client"))
    assert len(clients.errors) == CLIENTS * (ROUNDS - 1) + CLIENTS * ROUNDS  # what they train and what they evaluate
    assert max(clients.errors) < 1e-5


def test_in_the_servers_frame_they_do_where_the_units_that_heads_read_agree(tmp_path):
    for free, fits in ((["body.0"], True), (None, False)):
        clients = Strangers(False, head, free)
        run_app(SERVE, clients.app, tmp_path / str(fits), in_frame(False, "server"))
        assert (max(clients.errors) < 1e-5) == fits


@pytest.mark.slow
@pytest.mark.engine
def test_contexts_keep_the_heads_in_flowers_engine(tmp_path):
    """The same arrays as in this process: clients keep their heads between rounds there too."""
    inline, flower = (
        run_app(SERVE, personal_app(False, head), tmp_path / engine, in_frame(False, "client"), engine=engine)
        for engine in ("inline", "flower")
    )
    for key, array in inline.result.arrays.items():
        assert abs(flower.result.arrays[key].numpy() - array.numpy()).max() < 1e-4
