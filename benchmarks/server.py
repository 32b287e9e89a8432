"""What the aligned server costs beside Flower's own FedAvg on the same replies: seconds and peak memory of a round.

Clients trained a little from the global model, so that their units are in its order already; the assignment is skipped
where that is provable. Each case runs in a process of its own, for its peak memory.

    python benchmarks/server.py [--replies 8,64,512,2000] [--models mlp,resnet20]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedrebasin import Identity, PermutationSpec
from fedrebasin.models import make_model
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, FedRebasin, StreamingGrid

MODELS = {"mlp": ("mlp", (1, 28, 28), 512), "resnet20": ("resnet20", (3, 32, 32), 4)}


class LazyGrid(InlineGrid):
    """Makes each reply when it is pulled, as clients that end one after the other would."""

    def __init__(self, nodes: int, make_reply: Callable[[Message], Message]) -> None:
        super().__init__(ClientApp(), nodes)
        self._make_reply = make_reply
        self._sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            self._sent[str(number)] = message
        return list(self._sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        for message_id in message_ids:
            if message_id in self._sent:
                return [self._make_reply(self._sent.pop(message_id))]
        return []


def make_strategy(kind: str, spec: PermutationSpec, nodes: int) -> Strategy:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if kind == "FedAvg":
        return inner
    if kind == "identity":
        return Aligned(inner, aligner=Identity())
    return FedRebasin(inner, spec=spec) if kind == "rebasin" else Aligned(inner, spec=spec, streaming=True)


def run_case(kind: str, model_name: str, nodes: int) -> dict[str, float]:
    torch.set_num_threads(1)
    name, shape, width = MODELS[model_name]
    model = make_model(name, shape, 10, width, seed=0)
    spec = PermutationSpec.trace(model, torch.zeros(2, *shape), check=False)
    start = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    sizes = {key: 0.05 * float(array.std()) for key, array in start.items() if array.dtype.kind == "f"}

    def make_reply(message: Message) -> Message:
        rng = np.random.default_rng(message.metadata.dst_node_id)
        arrays = {
            key: Array(np.asarray(array + np.float32(sizes[key]) * rng.standard_normal(array.shape, dtype=np.float32)))
            if key in sizes
            else Array(np.asarray(array))
            for key, array in start.items()
        }
        metrics = MetricRecord({"num-examples": 100, "loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    grid = LazyGrid(nodes, make_reply)
    strategy = make_strategy(kind, spec, nodes)
    messages = list(
        strategy.configure_train(1, ArrayRecord({k: Array(v) for k, v in start.items()}), ConfigRecord(), grid)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if kind == "streaming":
        # Making the replies costs time as well: it is measured alone and taken off.
        started = time.perf_counter()
        for message in messages:
            make_reply(message)
        making = time.perf_counter() - started
        started = time.perf_counter()
        strategy.aggregate_train(1, StreamingGrid(grid).send_and_receive(messages, timeout=None))
        seconds = time.perf_counter() - started - making
    else:
        replies = [make_reply(message) for message in messages]
        started = time.perf_counter()
        strategy.aggregate_train(1, replies)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak": peak, "grown": peak - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replies", default="8,64,512,2000")
    parser.add_argument("--models", default="mlp,resnet20")
    parser.add_argument("--case", nargs=3, metavar=("KIND", "MODEL", "REPLIES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        kind, model, nodes = arguments.case
        print(json.dumps(run_case(kind, model, int(nodes))))
        return
    print("| model | replies | strategy | seconds | of FedAvg's | peak memory grown by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in arguments.models.split(","):
        for nodes in map(int, arguments.replies.split(",")):
            if model == "resnet20" and nodes > 64:
                continue
            base = float("nan")
            for kind in ("FedAvg", "identity", "rebasin", "streaming"):
                command = [sys.executable, __file__, "--case", kind, model, str(nodes)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                base = found["seconds"] if kind == "FedAvg" else base
                ratio = found["seconds"] / base
                print(
                    f"| {model} | {nodes} | {kind} | {found['seconds']:.2f} | {ratio:.2f} | {found['grown']:.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
