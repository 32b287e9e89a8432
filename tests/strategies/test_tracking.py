"""Metrics of every round, once, as floats: to a function, TensorBoard, W&B, MLflow; nothing there ends a run."""

import sys
import types

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import Identity, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    FedMergeMany,
    FedRebasin,
    FedRegMean,
    FedWideAvg,
    MLflowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from tests.strategies.helpers import AXES, make_state

SPEC = PermutationSpec.from_axes(AXES)
START = make_state(0, integers=False)


def clients():
    app = ClientApp()

    @app.train()
    def train(message, context):
        state = make_state(context.node_id, integers=False)
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5, "per-class": [0.25, 0.75]})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 2})}), reply_to=message)

    return InlineGrid(app, 2)


def evaluate_fn(server_round, arrays):
    return MetricRecord({"accuracy": server_round / 10})


class Seen(list):
    """A log that keeps what it is called with."""

    def __call__(self, server_round, metrics):
        self.append((server_round, dict(metrics)))


STRATEGIES = {
    "Aligned": lambda **options: Aligned(FedAvg(), aligner=Identity(), **options),
    "streaming": lambda **options: FedRebasin(FedAvg(), spec=SPEC, streaming=True, **options),
    "FedRebasin": lambda **options: FedRebasin(FedAvg(), spec=SPEC, **options),
    "FedMergeMany": lambda **options: FedMergeMany(FedAvg(), spec=SPEC, **options),
    "FedWideAvg": lambda **options: FedWideAvg(FedAvg(), **options),
    "FedRegMean": lambda **options: FedRegMean(FedAvg(), spec=SPEC, **options),
}


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_once_a_round_with_what_flowers_result_has(make):
    seen = Seen()
    result = make(log=seen).start(clients(), ArrayRecord(START), num_rounds=3, evaluate_fn=evaluate_fn)
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == {"server/accuracy": 0.0}
    for number, metrics in seen[1:]:
        assert all(type(value) is float for value in metrics.values())
        assert metrics["server/accuracy"] == number / 10
        assert metrics["evaluate/loss"] == 2.0
        train = result.train_metrics_clientapp[number]
        assert {name for name in metrics if name.startswith("train/")} == {
            *(f"train/{name}" for name in train if name != "per-class"),
            "train/per-class/0",
            "train/per-class/1",
        }
        assert metrics["train/per-class/1"] == pytest.approx(0.75)
        assert all(metrics[f"train/{name}"] == train[name] for name in train if name != "per-class")


def test_a_second_run_begins_anew_and_a_run_that_breaks_off_leaves_its_last_round():
    seen = Seen()
    strategy = STRATEGIES["FedRebasin"](log=seen)
    broken = lambda number, _: 1 / 0 if number else None  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        strategy.start(clients(), ArrayRecord(START), num_rounds=2, evaluate_fn=broken)
    assert [number for number, _ in seen] == [1]
    assert {"train/loss", "evaluate/loss"} <= seen[0][1].keys()
    strategy.start(clients(), ArrayRecord(START), num_rounds=1)
    assert [number for number, _ in seen] == [1, 1]


def test_rounds_after_a_resume_keep_their_numbers(tmp_path):
    seen = Seen()
    for rounds in (1, 3):
        strategy = STRATEGIES["FedRebasin"](log=seen, checkpoint=tmp_path, resume=True)
        strategy.start(clients(), ArrayRecord(START), num_rounds=rounds)
    assert [number for number, _ in seen] == [1, 2, 3]


def test_what_a_log_raises_is_reported_and_changes_nothing(caplog):
    def broken(server_round, metrics):
        metrics.clear()
        raise ConnectionError("no tracker\nat that address")

    plain, logged = (
        STRATEGIES["FedRebasin"](log=log).start(clients(), ArrayRecord(START), num_rounds=2) for log in (None, broken)
    )
    for key, tensor in plain.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, logged.arrays.to_torch_state_dict()[key])
    assert plain.train_metrics_clientapp[2].keys() == logged.train_metrics_clientapp[2].keys()
    said = [record.getMessage() for record in caplog.records if "no tracker" in record.getMessage()]
    assert said == [f"log: round {number} was not written: ConnectionError: no tracker" for number in (1, 2)]


def test_metrics_that_are_none_are_reported_and_change_nothing(caplog):
    seen = Seen()
    strategy = STRATEGIES["FedRebasin"](log=seen)
    strategy.start(clients(), ArrayRecord(START), num_rounds=1, evaluate_fn=lambda number, _: {"note": "good"})
    assert seen == []
    assert sum("was not written: ValueError" in record.getMessage() for record in caplog.records) == 2


# -- the ready ones --


@pytest.mark.parametrize(
    ("make", "package"),
    [(lambda: TensorBoardLogger("runs"), "tensorboard"), (WandbLogger, "wandb"), (MLflowLogger, "mlflow")],
)
def test_what_is_missing_is_named_when_the_log_is_made(make, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RebasinError, match=f"needs {package}: pip install {package}"):
        make()


def run_with(log):
    STRATEGIES["FedRebasin"](log=log).start(clients(), ArrayRecord(START), num_rounds=2, evaluate_fn=evaluate_fn)


def test_tensorboard_writes_every_round_at_once(monkeypatch, tmp_path):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flushed")

    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run_with(TensorBoardLogger(tmp_path))
    assert calls[0] == str(tmp_path)
    assert [call for call in calls if "server/accuracy" in call] == [
        ("server/accuracy", number / 10, number) for number in range(3)
    ]
    assert calls.count("flushed") == 3
    assert calls[-1] == "flushed"


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_with(TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, pytest.approx(one.value)) for one in events.Scalars("server/accuracy")] == [
        (0, 0.0),
        (1, 0.1),
        (2, 0.2),
    ]
    assert len(events.Scalars("train/rebasin-similarity")) == 2


class FakeRun:
    """A W&B run."""

    def __init__(self):
        self.settings, self.logged, self.axes = None, [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, metrics):
        self.logged.append(metrics)


def test_wandb_begins_a_run_and_draws_over_rounds(monkeypatch):
    fake, run = types.ModuleType("wandb"), FakeRun()
    fake.run, fake.init = None, lambda **settings: setattr(run, "settings", settings) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_with(WandbLogger(project="federation"))
    assert run.settings == {"project": "federation"}
    assert run.axes == dict.fromkeys(("train/*", "evaluate/*", "server/*"), "server-round")
    assert [(one["server-round"], one["server/accuracy"]) for one in run.logged] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_wandb_joins_the_run_that_is_under_way(monkeypatch):
    fake, run = types.ModuleType("wandb"), FakeRun()
    fake.run = run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_with(WandbLogger())
    assert len(run.logged) == 3


@pytest.mark.parametrize("active", [True, False])
def test_mlflow_logs_to_the_active_run_or_a_new_one(active, monkeypatch):
    fake, logged = types.ModuleType("mlflow"), []
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="a"))
    other = types.SimpleNamespace(info=types.SimpleNamespace(run_id="b"))
    fake.active_run, fake.start_run = (lambda: run if active else None), (lambda: other)
    fake.log_metrics = lambda metrics, step, run_id: logged.append((run_id, step, metrics["server/accuracy"]))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    run_with(MLflowLogger())
    assert logged == [("a" if active else "b", number, number / 10) for number in range(3)]
