"""Replies made by hand, and every built-in Flower strategy that aggregates arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch import Tensor

from fedrebasin.simulations import InlineGrid

State = Mapping[str, Tensor]

CLIENTS = 8

COMMON = {
    "fraction_evaluate": 0.0,
    "min_train_nodes": CLIENTS,
    "min_available_nodes": CLIENTS,
}

# DP with no noise: two noisy runs differ because of the noise.
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**COMMON),
    "FedAvgM": lambda: FedAvgM(**COMMON, server_momentum=0.9, server_learning_rate=0.5),
    "FedAdam": lambda: FedAdam(**COMMON),
    "FedAdagrad": lambda: FedAdagrad(**COMMON),
    "FedYogi": lambda: FedYogi(**COMMON),
    "FedMedian": lambda: FedMedian(**COMMON),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(**COMMON),
    "FedProx": lambda: FedProx(**COMMON, proximal_mu=0.1),
    "Krum": lambda: Krum(**COMMON, num_malicious_nodes=1),
    "MultiKrum": lambda: MultiKrum(**COMMON, num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": lambda: Bulyan(**COMMON, num_malicious_nodes=1),
    "QFedAvg": lambda: QFedAvg(**COMMON, client_learning_rate=0.1, train_loss_key="train-loss"),
    "DP-server": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(**COMMON), 0.0, 1.0, CLIENTS),
    "DP-client": lambda: DifferentialPrivacyClientSideFixedClipping(FedAvg(**COMMON), 0.0, 1.0, CLIENTS),
}

#: Where clients clip, they align as well, and the server does not.
ALIGNABLE = [name for name in STRATEGIES if name != "DP-client"]


def make_state(seed: int, width: int = 6, integers: bool = True) -> dict[str, Tensor]:
    """Linear(4, w), BatchNorm(w), Linear(w, 3): floats, statistics and, if wanted, an integer counter."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        "0.weight": torch.randn(width, 4, generator=generator),
        "0.bias": torch.randn(width, generator=generator),
        "1.weight": torch.rand(width, generator=generator) + 0.5,
        "1.bias": torch.randn(width, generator=generator),
        "1.running_mean": torch.randn(width, generator=generator),
        "1.running_var": torch.rand(width, generator=generator) + 0.5,
        "3.weight": torch.randn(3, width, generator=generator),
        "3.bias": torch.randn(3, generator=generator),
    }
    if integers:
        state["1.num_batches_tracked"] = torch.tensor(10 + seed)
    return state


AXES = {
    "0.weight": ("P", None),
    "0.bias": ("P",),
    "1.weight": ("P",),
    "1.bias": ("P",),
    "1.running_mean": ("P",),
    "1.running_var": ("P",),
    "3.weight": (None, "P"),
    "3.bias": (None,),
}


def make_reply(
    state: State | ArrayRecord,
    node_id: int = 1,
    num_examples: float = 10,
    **metrics: float | list[float],
) -> Message:
    """A training reply as a client would send it; ``train_loss=0.5`` becomes the metric ``train-loss``."""
    InlineGrid(ClientApp(), 1)  # lets this process make messages
    asked = Message(RecordDict(), node_id, "train")
    arrays = state if isinstance(state, ArrayRecord) else ArrayRecord(dict(state))
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    record = MetricRecord({"num-examples": num_examples, "train-loss": 0.5} | named)
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=asked)


def run_round(strategy: Strategy, start: State, replies: Sequence[Message], server_round: int = 1):
    """configure_train, then aggregate_train."""
    random.seed(0)
    grid = InlineGrid(ClientApp(), CLIENTS)
    arrays = start if isinstance(start, ArrayRecord) else ArrayRecord(dict(start))
    list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
    return strategy.aggregate_train(server_round, replies)


class FromNothing(Strategy):
    """A strategy that is none of Flower's: it sends all nodes the model, and evaluates nothing."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message to each node."""
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node, "train") for node in grid.get_node_ids()]

    def configure_evaluate(self, *_: object) -> list[Message]:
        """Nobody."""
        return []

    def aggregate_evaluate(self, *_: object) -> None:
        """Nothing."""

    def summary(self) -> None:
        """Nothing."""
