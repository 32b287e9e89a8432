"""A small federation on digits with attackers in it: what they send, and what the aggregate is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from fedrebasin import Alignment, AlignTo, Matcher, Permutation, PermutationSpec, medoid
from fedrebasin.models import MLP
from fedrebasin.simulations import InlineGrid, load_dataset
from fedrebasin.strategies import to_state

State = dict[str, Tensor]


@dataclass(frozen=True)
class Clients:
    """Trained models, each from its own initialisation and on its own examples.

    Args:
        honest: their models.
        dishonest: what the attackers have trained themselves, as well as the others.
        misled: a model that was trained to call every digit the next one.
        model: the architecture.
        spec: its permutation spec.
    """

    honest: list[State]
    dishonest: list[State]
    misled: State
    model: MLP
    spec: PermutationSpec

    def accuracy(self, state: State) -> float:
        """On the test set."""
        data = load_dataset("digits")
        logits = functional_call(self.model, state, (data.test_inputs,))
        return float((logits.argmax(1) == data.test_labels).double().mean())


def train_clients(honest: int, dishonest: int, width: int, examples: int, steps: int, seed: int = 0) -> Clients:
    """Train all of them.

    Args:
        honest: how many.
        dishonest: how many attackers, who train as well.
        width: of the two hidden layers.
        examples: each client draws so many of the training set.
        steps: of Adam on all of a client's examples at once.
        seed: of everything.
    """
    data = load_dataset("digits")
    models, drawn = [], []
    for client in range(honest + dishonest + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + client)
            models.append(MLP(64, width=width, depth=2))
            drawn.append(torch.randperm(len(data.train_labels))[:examples])
    inputs, labels = data.train_inputs[torch.stack(drawn)], data.train_labels[torch.stack(drawn)]
    labels[-1] = (labels[-1] + 1) % 10
    stacked, _ = stack_module_state(models)  # all of them in one go: no model's gradient depends on another
    optimizer = torch.optim.Adam(stacked.values(), lr=0.01, weight_decay=1e-4)
    run = vmap(lambda state, batch: functional_call(models[0], state, (batch,)))
    for _ in range(steps):
        optimizer.zero_grad()
        logits = run(stacked, inputs)
        (len(models) * cross_entropy(logits.flatten(0, 1), labels.flatten())).backward()
        optimizer.step()
    states = [{key: tensor[at].detach().clone() for key, tensor in stacked.items()} for at in range(len(models))]
    spec = PermutationSpec.trace(models[0], data.train_inputs[:2], check=False)
    return Clients(states[:honest], states[honest:-1], states[-1], models[0], spec)


def _permuted(clients: Clients, state: State) -> list[State]:
    """As many copies as there are attackers, each with its units in another order: none is seen to be a copy."""
    generator = torch.Generator().manual_seed(0)
    return [Permutation.random(clients.spec, generator).apply(state) for _ in clients.dishonest]


def _noise(clients: Clients) -> list[State]:
    generator = torch.Generator().manual_seed(0)
    return [{k: torch.randn(t.shape, generator=generator) for k, t in state.items()} for state in clients.dishonest]


def _out_of_step(clients: Clients) -> State:
    """An honest model whose second layer expects its inputs in another order: the same entries, and useless."""
    state = dict(clients.honest[0])
    columns = torch.randperm(state["layers.1.weight"].shape[1], generator=torch.Generator().manual_seed(0))
    return {**state, "layers.1.weight": state["layers.1.weight"][:, columns]}


def _turned_mean(clients: Clients) -> State:
    """The honest models' aligned mean, which all of them are closest to, with its last layer turned round."""
    mean = AlignTo()(clients.spec, clients.honest).merged
    return {key: -tensor if key.startswith("layers.2.") else tensor for key, tensor in mean.items()}


ATTACKS: dict[str, Callable[[Clients], list[State]]] = {
    "flip signs": lambda clients: [{k: -t for k, t in state.items()} for state in clients.dishonest],
    "send noise": _noise,
    "scale by 100": lambda clients: [{k: 100 * t for k, t in state.items()} for state in clients.dishonest],
    "flip signs and scale by 100": lambda clients: [{k: -100 * t for k, t in s.items()} for s in clients.dishonest],
    "permuted copies of an honest model": lambda clients: _permuted(clients, clients.honest[0]),
    "permuted copies of a misled model": lambda clients: _permuted(clients, clients.misled),
    "permuted copies with layers out of step": lambda clients: _permuted(clients, _out_of_step(clients)),
    "permuted copies of the mean with a turned head": lambda clients: _permuted(clients, _turned_mean(clients)),
}


def robust(malicious: int) -> dict[str, Callable[[], Strategy]]:
    """Flower's robust strategies, told how many attackers to expect, and FedAvg, which is none."""
    common = {"fraction_evaluate": 0.0}
    return {
        "FedMedian": lambda: FedMedian(**common),
        "FedTrimmedAvg": lambda: FedTrimmedAvg(**common, beta=0.25),
        "Krum": lambda: Krum(**common, num_malicious_nodes=malicious),
        "MultiKrum": lambda: MultiKrum(**common, num_malicious_nodes=malicious, num_nodes_to_select=5),
        "Bulyan": lambda: Bulyan(**common, num_malicious_nodes=malicious),
        "FedAvg": lambda: FedAvg(**common),
    }


@dataclass(frozen=True)
class Remembered:
    """A matcher that matches the same pair once: every strategy is attacked in the same way."""

    matcher: Matcher
    known: dict[bytes, Alignment] = field(default_factory=dict, repr=False)

    def __call__(
        self, spec: PermutationSpec, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
    ) -> Alignment:
        pair = b"".join(tensor.numpy().tobytes() for state in (reference, candidate) for tensor in state.values())
        if pair not in self.known:
            self.known[pair] = self.matcher(spec, reference=reference, candidate=candidate)
        return self.known[pair]


def aggregate(clients: Clients, strategy: Strategy, sent: Sequence[State]) -> State:
    """One round in which every model of ``sent`` is a reply, to a server whose own model is none of theirs."""
    grid = InlineGrid(ClientApp(), len(sent))
    start = {key: torch.roll(tensor, 1, 0) for key, tensor in clients.misled.items()}
    messages = strategy.configure_train(1, ArrayRecord(start), ConfigRecord(), grid)
    asked = {message.metadata.dst_node_id: message for message in messages}
    replies = []
    for node_id, state in enumerate(sent, start=1):
        metrics = MetricRecord({"num-examples": 100, "train-loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord(dict(state)), "metrics": metrics})
        replies.append(Message(content, reply_to=asked[node_id]))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return to_state(arrays)


def aligned_beforehand(clients: Clients, matcher: Matcher, sent: Sequence[State]) -> list[State]:
    """The models in the order that the honest ones alone would have: what no attacker has had a part in."""
    reference = clients.honest[medoid(clients.spec, clients.honest, matcher)]
    return [matcher(clients.spec, reference=reference, candidate=state).apply(state) for state in sent]
