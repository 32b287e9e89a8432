"""An app after the shape of Flower's advanced example: its strategy has a ``start`` of its own."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, Result

from tests.flower import harness
from tests.flower.harness import ROUNDS, assert_keeps_working, central_evaluation, make_net, torch_client


class Tracked(FedAvg):
    """Runs the rounds itself: a tracker, a results file after every round, the best model so far."""

    def keep_in(self, folder: Path) -> None:
        self.folder = folder

    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 2:
            config["lr"] = config["lr"] / 2
        return super().configure_train(server_round, arrays, config, grid)

    def start(
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=3600,
        train_config=None,
        evaluate_config=None,
        evaluate_fn=None,
    ):
        self._track("begin", type(self).__name__)
        self.best, self.history = 0.0, []
        self.summary()
        result, arrays = Result(), initial_arrays
        result.evaluate_metrics_serverapp[0] = evaluate_fn(0, arrays)
        for number in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(number, arrays, train_config, grid), timeout=timeout)
            new, trained = self.aggregate_train(number, replies)
            if new is not None:
                arrays = result.arrays = new
            result.train_metrics_clientapp[number] = trained
            messages = self.configure_evaluate(number, arrays, evaluate_config or ConfigRecord(), grid)
            evaluated = self.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))
            result.evaluate_metrics_clientapp[number] = evaluated
            found = result.evaluate_metrics_serverapp[number] = evaluate_fn(number, arrays)
            self._keep_best(number, found["accuracy"], arrays)
            self._write({"round": number, "train": dict(trained), "evaluate": dict(evaluated), "server": dict(found)})
            self._track("round", number)
        self._track("end", self.best_round)
        return result

    def _keep_best(self, number, accuracy, arrays):
        if accuracy > self.best:
            self.best, self.best_round = accuracy, number
            torch.save(arrays.to_torch_state_dict(), self.folder / "best.pt")

    def _write(self, row):
        self.history.append(row)
        (self.folder / "results.json").write_text(json.dumps(self.history))

    def _track(self, *event):
        with (self.folder / "tracker.txt").open("a") as file:
            print(*event, file=file)


def serve(grid, wrap, folder):
    strategy = wrap(Tracked(fraction_evaluate=1.0, min_available_nodes=harness.CLIENTS))
    strategy.keep_in(folder)
    return strategy.start(
        grid,
        ArrayRecord(make_net().state_dict()),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"lr": 0.2}),
        evaluate_fn=central_evaluation,
    )


def test_a_start_of_its_own_is_run(tmp_path):
    ran = assert_keeps_working(serve, torch_client(), tmp_path)
    assert ran.files["tracker.txt"][:2] == ["begin Tracked", "round 1"]
    assert [row["round"] for row in ran.files["results.json"]] == [1, 2]
    assert "best.pt" in ran.files


@pytest.mark.slow
@pytest.mark.engine
def test_on_flowers_engine(tmp_path):
    plain = harness.run_app(serve, torch_client(), tmp_path / "plain", engine="flower")
    wrapped = harness.run_app(serve, torch_client(), tmp_path / "aligned", harness.aligned, engine="flower")
    harness.assert_same_form(plain, wrapped)
