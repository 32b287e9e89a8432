"""One app, run with its own strategy and with the strategy wrapped: what it leaves behind must be the same.

An app here is a server side and a ClientApp. The server side is a function ``serve(grid, wrap, folder) -> Result``: it
makes its strategy as the app would, says ``wrap(strategy).start(grid, ...)``, and whatever else it does (files,
callbacks, trackers) it does into ``folder``.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedrebasin.simulations.engines import on_engine
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fedrebasin import Identity, PermutationSpec
from fedrebasin.strategies import Aligned, FedRebasin

CLIENTS = 3
ROUNDS = 2

Wrap = Callable[[Strategy], Strategy]
Serve = Callable[[Grid, Wrap, Path], Result]


def unwrapped(strategy: Strategy) -> Strategy:
    """The app as it is."""
    return strategy


def identity(strategy: Strategy) -> Strategy:
    """Wrapped, and nothing is aligned."""
    return Aligned(strategy, aligner=Identity())


def streamed(strategy: Strategy) -> Strategy:
    """Wrapped, nothing is aligned, and replies are taken as they arrive."""
    return Aligned(strategy, aligner=Identity(), streaming=True)


def aligned(strategy: Strategy) -> Strategy:
    """Wrapped, and the clients' units are brought into one order."""
    return FedRebasin(strategy, spec=spec_of(make_net()))


@dataclass(frozen=True)
class Ran:
    """What an app left behind.

    Args:
        result: of the server side.
        files: in its folder, by path: JSON as it reads, lines of text, else None.
        warnings: of Flower's log, which is this package's too.
    """

    result: Result
    files: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Of all rounds, by where they come from."""
        kinds = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
        return {kind: {number: dict(found) for number, found in getattr(self.result, kind).items()} for kind in kinds}


def run_app(
    serve: Serve,
    client_app: ClientApp,
    folder: Path,
    wrap: Wrap = unwrapped,
    *,
    clients: int = CLIENTS,
    engine: str = "inline",
    seed: int = 0,
) -> Ran:
    """Run an app once; ``engine="flower"`` is Flower's own (mark the test ``engine``)."""
    folder.mkdir(parents=True)
    random.seed(seed)
    torch.manual_seed(seed)
    with heard() as warnings:
        result = on_engine(engine, client_app, clients, lambda grid: serve(grid, wrap, folder))
    return Ran(result, _read(folder), tuple(warnings))


def assert_same(plain: Ran, wrapped: Ran) -> None:
    """The same arrays bit for bit, the same metrics, the same files with the same contents."""
    assert wrapped.metrics == plain.metrics
    assert wrapped.files == plain.files
    assert list(wrapped.result.arrays) == list(plain.result.arrays)
    for key, array in plain.result.arrays.items():
        assert wrapped.result.arrays[key].numpy().tobytes() == array.numpy().astype(array.dtype).tobytes(), key


def assert_same_form(plain: Ran, wrapped: Ran) -> None:
    """Arrays of the same keys and shapes; every metric and every file is there: numbers may differ, and be more."""
    assert {key: array.shape for key, array in wrapped.result.arrays.items()} == {
        key: array.shape for key, array in plain.result.arrays.items()
    }
    _assert_within(plain.metrics, wrapped.metrics, "metrics")
    _assert_within(plain.files, wrapped.files, "files")


def assert_keeps_working(serve: Serve, client_app: ClientApp, folder: Path, align: Wrap = aligned) -> Ran:
    """The app as it is, wrapped with nothing aligned (at once and streamed), and aligned; what the last one left."""
    plain = run_app(serve, client_app, folder / "plain")
    assert_same(plain, run_app(serve, client_app, folder / "identity", identity))
    one_by_one = run_app(serve, client_app, folder / "streamed", streamed)
    assert_same_form(plain, one_by_one)
    for key, array in plain.result.arrays.items():  # a running mean rounds otherwise
        np.testing.assert_allclose(one_by_one.result.arrays[key].numpy(), array.numpy(), rtol=1e-3, atol=1e-4)
    last = run_app(serve, client_app, folder / "aligned", align)
    assert_same_form(plain, last)
    return last


@contextmanager
def heard() -> Iterator[list[str]]:
    """What Flower's log warns of meanwhile."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, listener = logging.getLogger("flwr"), Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            readers = {".json": json.loads, ".txt": str.splitlines}
            reader = readers.get(path.suffix)
            found[str(path.relative_to(folder))] = None if reader is None else reader(path.read_text())
    return found


def _assert_within(part: Any, whole: Any, where: str) -> None:
    """Every name of a tree is in another one, and lists are as long."""
    assert type(whole) is type(part), where
    if isinstance(part, dict):
        for name, value in part.items():
            assert name in whole, f"{where}: {name!r} is missing"
            _assert_within(value, whole[name], f"{where}/{name}")
    elif isinstance(part, list):
        assert len(whole) == len(part), where
        for place, (one, other) in enumerate(zip(part, whole, strict=True)):
            _assert_within(one, other, f"{where}/{place}")


# A model, data and clients for apps that need nothing special.


def make_net(seed: int = 0) -> nn.Sequential:
    """8 inputs, 16 hidden units, 4 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def spec_of(net: nn.Module) -> PermutationSpec:
    """Traced with inputs of 8 numbers."""
    return PermutationSpec.trace(net, torch.zeros(2, 8))


def make_data(partition: int, rows: int = 32) -> tuple[Tensor, Tensor]:
    """Inputs (rows, 8) and their classes: a client's part of a task that all have."""
    generator = torch.Generator().manual_seed(1000 + partition)
    inputs = torch.randn(rows, 8, generator=generator)
    return inputs, inputs[:, :4].argmax(1)


def fit(net: nn.Module, data: tuple[Tensor, Tensor], steps: int = 5, lr: float = 0.1) -> float:
    """Train with plain SGD on all rows; the last loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(data[0]), data[1])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def score(net: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Loss and accuracy."""
    with torch.no_grad():
        logits = net(data[0])
    right = (logits.argmax(1) == data[1]).float().mean()
    return {"loss": float(nn.functional.cross_entropy(logits, data[1])), "accuracy": float(right)}


def partition_of(context: Context) -> int:
    """The client's place among the clients."""
    return int(context.node_config["partition-id"])


def torch_client(make: Callable[[], nn.Module] = make_net) -> ClientApp:
    """A ClientApp as Flower's torch quickstart has it: trains and evaluates the model it is sent on its own data."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        net, data = make(), make_data(partition_of(context))
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = fit(net, data, lr=float(message.content["config"].get("lr", 0.1)))
        metrics = MetricRecord({"train-loss": loss, "num-examples": len(data[0]) + partition_of(context)})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        net, data = make(), make_data(100 + partition_of(context))
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        metrics = MetricRecord({**score(net, data), "num-examples": len(data[0])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def central_evaluation(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """The server's own ``evaluate_fn`` for :func:`make_net`."""
    net = make_net()
    net.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord(score(net, make_data(500)))
