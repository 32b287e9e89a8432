"""An app after the shape of Flower's torch quickstart: two lines, and nothing else changes."""

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from tests.flower.harness import ROUNDS, assert_keeps_working, central_evaluation, make_net, torch_client


def serve(grid, wrap, folder):
    result = wrap(FedAvg(fraction_evaluate=1.0)).start(
        grid,
        ArrayRecord(make_net().state_dict()),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=central_evaluation,
    )
    lines = [f"{number} {metrics}" for number, metrics in result.evaluate_metrics_serverapp.items()]
    (folder / "history.txt").write_text("\n".join(lines))
    return result


def test_the_wrapped_app_leaves_the_same_behind(tmp_path):
    ran = assert_keeps_working(serve, torch_client(), tmp_path)
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
    assert ran.warnings == ()
