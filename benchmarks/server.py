"""What the aligned server costs beside Flower's own FedAvg on the same replies: seconds and peak memory of a round.

Clients trained a little from the global model, so that their units are in its order already; the assignment is skipped
where that is provable. All strategies of a row run in one process, one after the other, ``--repeats`` times (once for
more than 500 replies); seconds are the processor's, the least of the repeats. Memory is what its peak grew by, with
the replies themselves where they are all at hand.

    python benchmarks/server.py [--replies 8,64,512,2000] [--models mlp,resnet20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from support.lazy import LazyGrid, forget_peak, resident

from fedrebasin import Identity, PermutationSpec
from fedrebasin.models import make_model
from fedrebasin.strategies import Aligned, FedRebasin, StreamingGrid

MODELS = {"mlp": ("mlp", (1, 28, 28), 512), "resnet20": ("resnet20", (3, 32, 32), 4)}
KINDS = ("FedAvg", "identity", "rebasin", "streaming")
LARGEST = {"mlp": 2000, "resnet20": 64}
STEP = 0.05  # of a client's training, in standard deviations of each array


class Replies:
    """Replies of clients that trained a little: the global model and noise, drawn once and shifted for each node."""

    def __init__(self, start: dict[str, np.ndarray]) -> None:
        self._start = start
        largest = max(array.size for array in start.values())
        self._noise = np.random.default_rng(0).standard_normal(largest + 100_003, dtype=np.float32)
        self._sizes = {key: STEP * float(array.std()) for key, array in start.items() if array.dtype.kind == "f"}

    def __call__(self, message: Message) -> Message:
        offset = 997 * message.metadata.dst_node_id % 100_003
        arrays = {}
        for key, array in self._start.items():
            noise = self._noise[offset : offset + array.size].reshape(array.shape)
            arrays[key] = Array(
                np.asarray(array + np.float32(self._sizes[key]) * noise if key in self._sizes else array)
            )
        metrics = MetricRecord({"num-examples": 100, "loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


def make_strategy(kind: str, spec: PermutationSpec, nodes: int) -> Strategy:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if kind == "FedAvg":
        return inner
    if kind == "identity":
        return Aligned(inner, aligner=Identity())
    return FedRebasin(inner, spec=spec, streaming=kind == "streaming")


def measure(model_name: str, nodes: int, repeats: int) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    name, shape, width = MODELS[model_name]
    model = make_model(name, shape, 10, width, seed=0)
    spec = PermutationSpec.trace(model, torch.zeros(2, *shape), check=False)
    start = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    make_reply = Replies(start)
    found: dict[str, dict[str, float]] = {kind: {"seconds": float("inf"), "grown": 0.0} for kind in KINDS}
    for kind in (*KINDS, *KINDS) if repeats > 1 else KINDS:  # warm
        run(kind, spec, start, 8 if repeats > 1 else 2, make_reply)
    for _ in range(repeats):
        for kind in KINDS:
            seconds, grown = run(kind, spec, start, nodes, make_reply)
            found[kind]["seconds"] = min(found[kind]["seconds"], seconds)
            found[kind]["grown"] = max(found[kind]["grown"], grown)
    return found


def run(
    kind: str, spec: PermutationSpec, start: dict[str, np.ndarray], nodes: int, make_reply: Replies
) -> tuple[float, float]:
    """One round: processor seconds, and MB that the peak grew by."""
    grid = LazyGrid(nodes, make_reply)
    strategy = make_strategy(kind, spec, nodes)
    arrays = ArrayRecord({key: Array(array) for key, array in start.items()})
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    before = forget_peak()
    if kind == "streaming":
        # Making the replies takes time as well: some are made alone, and their time is taken off.
        timed = messages[: min(nodes, 32)]
        started = time.process_time()
        for message in timed:
            make_reply(message)
        making = (time.process_time() - started) * nodes / len(timed)
        started = time.process_time()
        strategy.aggregate_train(1, StreamingGrid(grid).send_and_receive(messages, timeout=None))
        seconds = time.process_time() - started - making
    else:
        replies = [make_reply(message) for message in messages]
        started = time.process_time()
        strategy.aggregate_train(1, replies)
        seconds = time.process_time() - started
    return seconds, resident(peak=True) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replies", default="8,64,512,2000")
    parser.add_argument("--models", default="mlp,resnet20")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", nargs=2, metavar=("MODEL", "REPLIES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        model, nodes = arguments.case
        print(json.dumps(measure(model, int(nodes), arguments.repeats)))
        return
    print("| model | replies | strategy | processor seconds | of FedAvg's | peak memory grown by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in arguments.models.split(","):
        for nodes in map(int, arguments.replies.split(",")):
            if nodes > LARGEST[model]:
                continue
            repeats = 1 if nodes > 500 else arguments.repeats
            command = [sys.executable, __file__, "--case", model, str(nodes), "--repeats", str(repeats)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            for kind, numbers in found.items():
                ratio = numbers["seconds"] / found["FedAvg"]["seconds"]
                measured = f"{numbers['seconds']:.2f} | {ratio:.2f} | {numbers['grown']:.0f} MB"
                print(f"| {model} | {nodes} | {kind} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
