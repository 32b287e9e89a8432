"""FedBN (Li 2021): all is averaged but the BatchNorm layers, which stay with the clients."""

import pytest

from tests.flower.harness import ROUNDS, assert_keeps_working, run_app
from tests.flower.personal import Strangers, in_frame, personal_app, sender


def norm(key):
    """What stays with the clients: scales, shifts, running statistics and counters."""
    return key.startswith(("body.1.", "body.4."))


SERVE = sender(True, norm)


@pytest.mark.parametrize("frame", ["server", "client"])
def test_the_wrapped_app_leaves_the_same_behind(frame, tmp_path):
    ran = assert_keeps_working(SERVE, personal_app(True, norm), tmp_path, in_frame(True, frame))
    assert not any(norm(key) for key in ran.result.arrays)
    assert ran.metrics["train_metrics_clientapp"][ROUNDS]["rebasin-replies-set-aside"] == 0
    if frame == "client":
        assert ran.warnings == ()
    else:
        assert "none is left to align" in ran.warnings[0]
        assert 'frame="client" aligns the groups as well' in ran.warnings[0]


def test_layers_of_any_order_fit_their_norms_in_the_nodes_own_frames(tmp_path):
    for frame, fits in (("client", True), ("server", False)):
        clients = Strangers(True, norm)
        run_app(SERVE, clients.app, tmp_path / frame, in_frame(True, frame))
        assert (max(clients.errors) < 1e-5) == fits
