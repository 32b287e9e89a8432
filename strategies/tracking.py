"""Experiment tracking: the metrics of every round, handed to a callable, to TensorBoard, W&B or MLflow.

Names are ``train/NAME`` and ``evaluate/NAME`` for what the clients' replies come to, ``server/NAME`` for what the
``evaluate_fn`` of the server found.
"""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fedrebasin import RebasinError
from fedrebasin.errors import one_line

from .flower import log

KINDS = ("train", "evaluate", "server")

#: Called once a round with the number of the round and its metrics.
Log = Callable[[int, Mapping[str, float]], object]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class RoundMetrics:
    """Gathers the metrics of a round and hands them on once, when the round is over.

    Args:
        log: what gets them; None keeps nothing.
    """

    def __init__(self, log: Log | None) -> None:
        self._log = log
        self._round = 0
        self._metrics: list[tuple[str, Mapping[str, Any]]] = []

    def add(self, server_round: int, kind: str, metrics: MetricRecord | None) -> None:
        """Take in some metrics of a round."""
        if server_round != self._round:
            self.flush()
        self._round = server_round
        if self._log is not None and metrics is not None:
            self._metrics.append((kind, metrics))

    def of_server(self, evaluate_fn: EvaluateFn, number: Callable[[int], int]) -> EvaluateFn:
        """The server's ``evaluate_fn`` with the true number of the round, whose metrics are taken in."""

        @wraps(evaluate_fn)
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(number(server_round), arrays)
            self.add(number(server_round), "server", metrics)
            return metrics

        return evaluate

    def flush(self) -> None:
        """Hand on what there is: the round is over. What goes wrong there is logged and ends nothing."""
        metrics, self._metrics = self._metrics, []
        if self._log is None or not metrics:
            return
        try:
            self._log(self._round, {name: x for kind, found in metrics for name, x in to_floats(kind, found).items()})
        except Exception as error:  # a tracker out of reach must not end a run
            log(WARNING, "log: round %d was not written: %s", self._round, one_line(error))


def to_floats(kind: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats with their kind in front; the numbers of a list become ``NAME/0``, ``NAME/1``, ..."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            found |= {f"{kind}/{name}/{place}": float(one) for place, one in enumerate(value)}
        else:
            found[f"{kind}/{name}"] = float(value)
    return found


class TensorBoardLogger:
    """Writes every round to a folder that TensorBoard shows: ``Aligned(..., log=TensorBoardLogger("runs/a"))``.

    Args:
        folder: where the event file goes; best an absolute path, as Flower runs apps in a folder of its own.

    Raises:
        RebasinError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _demand("tensorboard", "TensorBoardLogger")
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(os.fspath(folder))

    def __call__(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Write a round, so that it is seen at once."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()


class WandbLogger:
    """Logs every round to Weights & Biases: ``Aligned(..., log=WandbLogger(project="federation"))``.

    Args:
        settings: of ``wandb.init``, which is called unless a run is under way already.

    Raises:
        RebasinError: if wandb is not installed.
    """

    def __init__(self, **settings: Any) -> None:
        wandb = _demand("wandb", "WandbLogger")
        self._run = wandb.init(**settings) if settings or wandb.run is None else wandb.run
        for kind in KINDS:  # W&B's own step counts calls, an app's other ones too
            self._run.define_metric(f"{kind}/*", step_metric="server-round")

    def __call__(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round; its number is what W&B draws the metrics over."""
        self._run.log({"server-round": server_round, **metrics})


class MLflowLogger:
    """Logs every round to MLflow, in the run that is active or a new one: ``Aligned(..., log=MLflowLogger())``.

    Where the runs are kept is MLflow's: ``mlflow.set_tracking_uri``, ``mlflow.set_experiment``.

    Raises:
        RebasinError: if mlflow is not installed.
    """

    def __init__(self) -> None:
        self._mlflow = _demand("mlflow", "MLflowLogger")
        run = self._mlflow.active_run() or self._mlflow.start_run()
        self._run_id = run.info.run_id

    def __call__(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round; its number is MLflow's step."""
        self._mlflow.log_metrics(dict(metrics), step=server_round, run_id=self._run_id)


def _demand(package: str, who: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise RebasinError(f"{who} needs {package}: pip install {package} ({one_line(error)})") from error
