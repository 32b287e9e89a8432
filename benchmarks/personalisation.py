"""Personalised federations on digits: a part of the model is averaged, aligned or not, and the rest stays at home.

FedPer keeps each client's last layer at home, FedBN its BatchNorm layers. Clients start together, from the server's
model, or apart: they have trained alone before they join, each from its own initialisation. Control: the same training
without a server.

    python benchmarks/personalisation.py [--seeds 5] [--rounds 10] [--write]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from support.section import stamp, write_section
from torch import Tensor, nn
from torch.func import functional_call

from fedrebasin import PermutationSpec
from fedrebasin.simulations import InlineGrid, dirichlet, load_dataset
from fedrebasin.strategies import FedRebasin

CLIENTS, ALPHA, WIDTH = 8, 0.3, 32
ALONE = 20  # epochs before the first round, of clients that start apart

State = dict[str, Tensor]


def mlp() -> nn.Sequential:
    """Two hidden layers; the last one is the head."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )


def normed() -> nn.Sequential:
    """The same with BatchNorm."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()),
        *(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, 10),
    )


#: The model, and which of its keys are sent.
METHODS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[str], bool]]] = {
    "FedPer": (mlp, lambda key: not key.startswith("5.")),
    "FedBN": (normed, lambda key: not key.startswith(("2.", "5."))),
}

#: None is no server at all.
STRATEGIES: dict[str, Callable[[PermutationSpec], Strategy] | None] = {
    "alone, never averaged": None,
    "`FedAvg()`": lambda spec: FedAvg(fraction_evaluate=0.0),
    "`FedRebasin(spec=spec)`": lambda spec: FedRebasin(FedAvg(fraction_evaluate=0.0), spec=spec),
    '`FedRebasin(spec=spec, frame="client")`': lambda spec: FedRebasin(
        FedAvg(fraction_evaluate=0.0), spec=spec, frame="client"
    ),
}


@dataclass
class Clients:
    """All clients of one run.

    Args:
        method: of ``METHODS``.
        seed: of everything.
        apart: whether each has trained alone, from its own initialisation, before the first round.
        received: by round, each client's accuracy with what it has just received and what it kept.
        trained: the same after its epoch.
    """

    method: str
    seed: int
    apart: bool
    received: dict[int, list[float]] = field(default_factory=dict)
    trained: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make, self.sent = METHODS[self.method]
        data = load_dataset("digits")
        self.test = data.test_inputs, data.test_labels
        parts = dirichlet(data.train_labels.numpy(), CLIENTS, alpha=ALPHA, seed=self.seed)
        self.data = [(data.train_inputs[part], data.train_labels[part]) for part in map(torch.from_numpy, parts)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = make()
            shared = make().state_dict()
            self.start: State = {key: tensor for key, tensor in shared.items() if self.sent(key)}
            self.states: list[State] = [make().state_dict() if self.apart else dict(shared) for _ in range(CLIENTS)]
        for client in range(CLIENTS if self.apart else 0):
            for epoch in range(ALONE):
                self.train(client, -epoch)

    def train(self, client: int, number: int) -> None:
        """One epoch of SGD on the client's examples."""
        self.model.load_state_dict(self.states[client])
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        inputs, labels = self.data[client]
        generator = torch.Generator().manual_seed(hash((self.seed, client, number)) % 2**31)
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            if len(batch) > 1:  # BatchNorm has no variance of one
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
        self.states[client] = {key: tensor.detach().clone() for key, tensor in self.model.state_dict().items()}

    def accuracy(self, client: int) -> float:
        """On the test set, its classes weighted as they are in the client's data."""
        self.model.eval()
        inputs, labels = self.test
        with torch.no_grad():
            right = functional_call(self.model, self.states[client], (inputs,)).argmax(1) == labels
        wanted, there = (torch.bincount(each, minlength=10).double() for each in (self.data[client][1], labels))
        weights = (wanted / there)[labels]
        return float((right * weights).sum() / weights.sum())

    def round(self, client: int, number: int, received: Mapping[str, Tensor]) -> State:
        """What a client does in a round; what it sends."""
        if number > 1 or not self.apart:  # one that has trained before sends what it has first
            self.states[client] |= received
        self.received.setdefault(number, []).append(self.accuracy(client))
        self.train(client, number)
        self.trained.setdefault(number, []).append(self.accuracy(client))
        return {key: tensor for key, tensor in self.states[client].items() if self.sent(key)}

    def run(self, make: Callable[[PermutationSpec], Strategy] | None, rounds: int) -> None:
        """All rounds, and a last one whose model is received and judged."""
        if make is None:
            for number in range(1, rounds + 2):
                for client in range(CLIENTS):
                    self.round(client, number, {})
            return
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            number = int(message.content["config"]["server-round"])
            state = self.round(context.node_id - 1, number, message.content["arrays"].to_torch_state_dict())
            metrics = MetricRecord({"num-examples": len(self.data[context.node_id - 1][1])})
            return Message(RecordDict({"arrays": ArrayRecord(dict(state)), "metrics": metrics}), reply_to=message)

        spec = PermutationSpec.trace(self.model.eval(), self.test[0][:2])
        make(spec).start(InlineGrid(app, CLIENTS), ArrayRecord(dict(self.start)), num_rounds=rounds + 1)


def cell(runs: Sequence[Clients], of: Callable[[Clients], dict[int, list[float]]], number: int) -> str:
    """Mean over clients and seeds; the worst seed's mean; the worst client of all."""
    found = [of(run)[number] for run in runs]
    means = [fmean(clients) for clients in found]
    values = fmean(means), min(means), min(map(min, found))
    return " / ".join(f"{100 * value:.1f}" for value in values)


def table(method: str, apart: bool, seeds: int, rounds: int) -> list[str]:
    """A row for each strategy."""
    shown = [number for number in (1, 3, rounds) if number <= rounds]
    heads = [*(f"received after round {number}" for number in shown), f"trained in round {rounds}"]
    lines = [f"| {method} | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for name, make in STRATEGIES.items():
        runs = [Clients(method, seed, apart) for seed in range(seeds)]
        for run in runs:
            run.run(make, rounds)
        received = [cell(runs, lambda run: run.received, number + 1) for number in shown]
        lines.append(f"| {name} | {' | '.join([*received, cell(runs, lambda run: run.trained, rounds)])} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write the page in benchmarks/results/")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    said = (
        f"`python benchmarks/personalisation.py --write`: digits, {CLIENTS} clients, Dirichlet {ALPHA}, two hidden "
        f"layers of {WIDTH}, one epoch a round, {arguments.seeds} seeds. Accuracy on the test set, its classes "
        "weighted as in each client's data: mean of clients and seeds / worst seed / worst client of all. *Received*: "
        "with the arrays that the server has just sent and those that the client kept; *trained*: after the client's "
        "own epoch. "
        f"Clients that start apart have trained {ALONE} epochs alone, each from its own initialisation."
    )
    lines = [said, "", stamp()]
    for method in METHODS:
        for apart in (False, True):
            lines += ["", f"### {method}, clients start {'apart' if apart else 'together'}", ""]
            lines += table(method, apart, arguments.seeds, arguments.rounds)
    if arguments.write:
        write_section("## Personalisation", lines)


if __name__ == "__main__":
    main()
