"""Long and large: a thousand clients in a round, and a thousand rounds.

The clients train nothing, so that time and memory are the server's: in the large round each reply is made when it is
pulled, of a network with an initialisation of its own ("own"), or of a network that all have but for noise as strong as
itself and an order of units of its own ("planted"). In the long run every client answers in every round with the global
model and noise, in the first one in an order of units of its own. Each row has a process of its own, with one thread.

    python benchmarks/long_runs.py [--clients 1000] [--rounds 1000] [--write]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedAvgM
from support.lazy import LazyGrid, forget_peak, resident
from support.section import stamp, write_section

from fedrebasin import Alignment, AlignTo, Permutation, PermutationSpec, WeightMatching
from fedrebasin.models import make_model
from fedrebasin.state import State
from fedrebasin.strategies import Aligned, StreamingGrid

#: Model, shape of an example, width, how replies are made.
LARGE = {
    "ResNet-20, own": ("resnet20", (3, 32, 32), 1, "own"),
    "ResNet-20, planted": ("resnet20", (3, 32, 32), 1, "planted"),
    "ResNet-20 x4, own": ("resnet20", (3, 32, 32), 4, "own"),
}
LONG = ("FedAvg", "FedAvg, streamed, client frame", "FedAvgM, checkpoints")
NODES = 8  # of the long runs
NOISE = 0.05  # of a client's training in a round of these, in standard deviations of each tensor
SAMPLES = 20  # of memory and objects in a long run
FIRST = 0.1  # of the rounds, which are warm-up


@dataclass(frozen=True)
class Counting:
    """A matcher that counts how often it is asked."""

    matcher: WeightMatching = field(default_factory=WeightMatching)
    keeps_aligned: bool = True
    asked: list[str] = field(default_factory=list)

    def __call__(self, spec: PermutationSpec, *, reference: State, candidate: State) -> Alignment:
        self.asked.append("")
        return self.matcher(spec, reference=reference, candidate=candidate)


def answer(message: Message, state: State) -> Message:
    arrays = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in state.items()})
    metrics = MetricRecord({"num-examples": 100, "loss": 0.5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def noised(state: State, share: float, generator: torch.Generator) -> State:
    return {
        key: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() and tensor.numel() > 1
        else tensor
        for key, tensor in state.items()
    }


def inner(nodes: int, kind: type[FedAvg] = FedAvg) -> FedAvg:
    return kind(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)


def large(name: str, clients: int) -> dict[str, float]:
    """One streamed round of clients with own starts: seconds, MB, and matchings."""
    kind, shape, width, how = LARGE[name]

    def made(seed: int) -> State:
        return dict(make_model(kind, shape, 10, width, seed=seed).state_dict())

    model = make_model(kind, shape, 10, width, seed=0)
    spec = PermutationSpec.trace(model, torch.zeros(2, *shape), check=False).bind(model.state_dict())
    base = made(1)
    making = 0.0

    def make_reply(message: Message) -> Message:
        nonlocal making
        started = time.process_time()
        node = message.metadata.dst_node_id
        generator = torch.Generator().manual_seed(node)
        state = made(10 + node) if how == "own" else noised(_shuffled(spec, base, generator), 1.0, generator)
        reply = answer(message, state)
        making += time.process_time() - started
        return reply

    called: list[str] = []
    original = WeightMatching.__call__

    def counted(self: WeightMatching, *args: object, **named: object) -> Alignment:
        called.append(self.method)
        return original(self, *args, **named)  # type: ignore[arg-type]

    WeightMatching.__call__ = counted  # type: ignore[method-assign]
    grid, matcher = LazyGrid(clients, make_reply), Counting()
    strategy = Aligned(inner(clients), spec=spec, aligner=AlignTo(matcher), streaming=True, workers=1)
    arrays = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in model.state_dict().items()})
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    before, started = forget_peak(), time.process_time()
    found, metrics = strategy.aggregate_train(1, StreamingGrid(grid).send_and_receive(messages, timeout=None))
    seconds = time.process_time() - started - making
    assert found is not None
    assert metrics is not None
    return {
        "clients": clients,
        "model": sum(tensor.nbytes for tensor in base.values()) / 2**20,
        "seconds": seconds,
        "grown": resident(peak=True) - before,
        "matched": len(matcher.asked),
        "reference": len(called) - len(matcher.asked),
        "set aside": float(metrics["rebasin-replies-set-aside"]),  # type: ignore[arg-type]
    }


def _shuffled(spec: PermutationSpec, state: State, generator: torch.Generator) -> State:
    return Permutation.random(spec, generator).apply(state)


def long(name: str, rounds: int) -> dict[str, float]:
    """Rounds of an MLP: how seconds, memory and objects change from round to round."""
    shape = (1, 8, 8)
    model = make_model("mlp", shape, 10, 64, seed=0)
    start = dict(model.state_dict())
    spec = PermutationSpec.trace(model, torch.zeros(2, *shape), check=False).bind(start)
    seconds: list[float] = []
    looked: list[tuple[int, float, int]] = []
    every = max(1, rounds // SAMPLES)
    making = 0.0

    def make_reply(message: Message) -> Message:
        nonlocal making
        started = time.process_time()
        generator = torch.Generator().manual_seed(NODES * len(seconds) + message.metadata.dst_node_id)
        state = message.content["arrays"].to_torch_state_dict()
        reply = answer(message, noised(state if seconds else _shuffled(spec, start, generator), NOISE, generator))
        making += time.process_time() - started
        return reply

    with tempfile.TemporaryDirectory() as folder:
        strategy = Aligned(
            inner(NODES, FedAvgM if "FedAvgM" in name else FedAvg),
            spec=spec,
            frame="client" if "client" in name else "server",
            streaming="streamed" in name,
            checkpoint=folder if "checkpoints" in name else None,
        )
        last = time.process_time()

        def ended(number: int, _: ArrayRecord) -> MetricRecord:
            nonlocal last, making
            if number:
                seconds.append(time.process_time() - last - making)
                if number % every == 0:
                    gc.collect()
                    looked.append((number, resident(), len(gc.get_objects())))
            last, making = time.process_time(), 0.0
            return MetricRecord({})

        arrays = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in start.items()})
        result = strategy.start(AllAtOnce(NODES, make_reply), arrays, num_rounds=rounds, evaluate_fn=ended)
    assert len(result.train_metrics_clientapp) == len(seconds) == rounds
    warm = int(FIRST * rounds)
    later = [row for row in looked if row[0] > warm]
    numbers, sizes, objects = (np.array(column, dtype=float) for column in zip(*later, strict=True))
    found = {"rounds": float(rounds), "set aside": _set_aside(result.train_metrics_clientapp)}
    times = np.array(seconds[warm:])
    for what, x, y in (
        ("ms", np.arange(warm, rounds, dtype=float), 1000 * times),
        ("MB", numbers, sizes),
        ("objects", numbers, objects),
    ):
        found |= {f"{what} {key}": value for key, value in slope(x, y).items()}
    return found


class AllAtOnce(LazyGrid):
    """Hands out all replies of a round, as Flower's grid does; made by the same clients."""

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        waiting = set(self.push_messages(messages))
        return [reply for _ in list(waiting) for reply in self.pull_messages(waiting)]


def _set_aside(metrics: Mapping[int, MetricRecord]) -> float:
    return sum(float(record["rebasin-replies-set-aside"]) for record in metrics.values())  # type: ignore[arg-type]


def slope(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The line of least squares through the means of ten blocks, by thousand rounds, with its standard error."""
    blocks = min(10, len(x))
    x, y = (np.array([fmean(part) for part in np.array_split(values, blocks)]) for values in (x / 1000, y))
    centred = x - x.mean()
    rise = float(centred @ y / (centred @ centred))
    left = y - y.mean() - rise * centred
    error = float(np.sqrt(left @ left / max(blocks - 2, 1) / (centred @ centred)))
    return {"first": float(y[0]), "last": float(y[-1]), "slope": rise, "error": error}


def row_large(name: str, found: Mapping[str, float]) -> str:
    return (
        f"| {name} | {found['clients']:.0f} | {found['model']:.1f} MB | {found['seconds']:.0f} | "
        f"{1000 * found['seconds'] / found['clients']:.0f} | {found['grown']:.0f} MB | {found['reference']:.0f} | "
        f"{found['matched']:.0f} | {found['set aside']:.0f} |"
    )


def row_long(name: str, found: Mapping[str, float]) -> str:
    parts = [
        f"{found[f'{what} first']:.{digits}f} / {found[f'{what} last']:.{digits}f} | "
        f"{found[f'{what} slope']:+.{digits}f} ± {found[f'{what} error']:.{digits}f}"
        for what, digits in (("ms", 2), ("MB", 1), ("objects", 0))
    ]
    return f"| {name} | {found['rounds']:.0f} | {' | '.join(parts)} | {found['set aside']:.0f} |"


def measured(what: str, name: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", what, name, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        torch.set_num_threads(1)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        what, name, count = arguments.case
        cases: dict[str, Callable[[str, int], dict[str, float]]] = {"large": large, "long": long}
        print(json.dumps(cases[what](name, int(count))))
        return
    said = (
        f"`python {Path(__file__).parent.name}/long_runs.py --write`. The clients train nothing: time and memory are "
    )
    lines = [
        said + "the server's, in processor",
        "seconds of one thread, without those that the replies take to make.",
        stamp(),
        "",
        "One streamed round of clients with own starts: what peak memory grew by, matchings for the reference and",
        "for replies. What a reply costs holds the former.",
        "",
        "| model, starts | clients | a model | seconds | ms a reply | grown by | reference | replies | set aside |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print(*lines, sep="\n", flush=True)
    for name in LARGE:
        lines.append(row_large(name, measured("large", name, arguments.clients)))
        print(lines[-1], flush=True)
    head = [
        "",
        f"Rounds of an MLP with three layers of 64, {NODES} clients: the mean of the first and of the last tenth (the",
        "rounds before them are warm-up), and the slope by thousand rounds with its standard error.",
        "",
        "| strategy | rounds | ms a round | slope | resident MB | slope | live objects | slope | set aside |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += head
    print(*head, sep="\n", flush=True)
    for name in LONG:
        lines.append(row_long(name, measured("long", name, arguments.rounds)))
        print(lines[-1], flush=True)
    if arguments.write:
        write_section("## Long and large", lines)


if __name__ == "__main__":
    main()
