"""FedRep (Collins 2021): as FedPer, and heads are trained first, on the body as it was received."""

import pytest

from tests.flower.harness import ROUNDS, assert_keeps_working, fit
from tests.flower.personal import in_frame, personal_app, sender
from tests.flower.test_fedper import head


def head_then_body(net, data):
    """The head alone, then the body alone."""
    for trained, still in ((net.head, net.body), (net.body, net.head)):
        trained.requires_grad_(True)
        still.requires_grad_(False)
        loss = fit(net, data)
    return loss


@pytest.mark.parametrize("frame", ["server", "client"])
def test_the_wrapped_app_leaves_the_same_behind(frame, tmp_path):
    app = personal_app(False, head, head_then_body)
    ran = assert_keeps_working(sender(False, head), app, tmp_path, in_frame(False, frame))
    assert ran.metrics["train_metrics_clientapp"][ROUNDS]["rebasin-replies-set-aside"] == 0
