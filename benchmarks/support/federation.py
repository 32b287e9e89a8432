"""A small federation on digits with attackers in it: their models, the strategies, and what an aggregate is worth."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from unittest.mock import patch

import numpy as np
import torch
from fedrebasin.strategies.replies import carrying
from fedrebasin.strategies.traits import expecting_fewer
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from fedrebasin import Alignment, AlignTo, Matcher, PermutationSpec, WeightMatching, medoid
from fedrebasin.models import MLP
from fedrebasin.simulations import InlineGrid, load_dataset
from fedrebasin.strategies import Aligned, to_state

State = dict[str, Tensor]

TARGET, BRIGHT = 0, 4.0  # a backdoor's class, and its trigger's pixels, in deviations


@dataclass(frozen=True)
class Clients:
    """Trained models, each from its own initialisation and on its own examples.

    Args:
        honest: their models.
        dishonest: what the attackers have trained themselves, as well as the others.
        misled: a model that was trained to call every digit the next one.
        model: the architecture.
        spec: its permutation spec.
        examples: an attacker's inputs and labels.
    """

    honest: list[State]
    dishonest: list[State]
    misled: State
    model: MLP
    spec: PermutationSpec
    examples: tuple[Tensor, Tensor]

    @cached_property
    def aligned(self) -> list[State]:
        """The honest models in one order, that of their medoid, which comes first."""
        at = medoid(self.spec, self.honest)
        order = [self.honest[at], *self.honest[:at], *self.honest[at + 1 :]]
        return [dict(state) for state in AlignTo(reference=0)(self.spec, order).states]

    @cached_property
    def mean(self) -> State:
        """Of the aligned honest models."""
        return {key: torch.stack([state[key] for state in self.aligned]).mean(0) for key in self.aligned[0]}

    @cached_property
    def deviation(self) -> State:
        """Of each entry of the aligned honest models."""
        return {key: torch.stack([state[key] for state in self.aligned]).std(0) for key in self.aligned[0]}

    def accuracy(self, state: State) -> float:
        """On the test set."""
        data = load_dataset("digits")
        logits = functional_call(self.model, state, (data.test_inputs,))
        return float((logits.argmax(1) == data.test_labels).double().mean())

    def trigger_success(self, state: State) -> float:
        """The share of the other classes' test examples that are called the target with the trigger on them."""
        data = load_dataset("digits")
        logits = functional_call(self.model, state, (with_trigger(data.test_inputs[data.test_labels != TARGET]),))
        return float((logits.argmax(1) == TARGET).double().mean())


def with_trigger(inputs: Tensor) -> Tensor:
    """Images with a bright corner."""
    marked = inputs.clone()
    marked[..., :2, :2] = BRIGHT
    return marked


def _drawn(labels: Tensor, examples: int, alpha: float | None) -> Tensor:
    """Positions of one client's examples, by torch's generator."""
    if alpha is None:
        return torch.randperm(len(labels))[:examples]
    classes = labels.unique()
    wanted = torch.distributions.Dirichlet(torch.full((len(classes),), alpha)).sample()
    sizes = torch.stack([(labels == label).sum() for label in classes])
    return torch.multinomial((wanted / sizes)[torch.searchsorted(classes, labels)], examples, replacement=True)


def train_clients(
    honest: int,
    dishonest: int,
    width: int,
    examples: int,
    steps: int,
    seed: int = 0,
    alpha: float | None = None,
) -> Clients:
    """Train all of them.

    Args:
        honest: how many.
        dishonest: how many attackers, who train as well.
        width: of the two hidden layers.
        examples: each client draws so many of the training set.
        steps: of Adam on all of a client's examples at once.
        seed: of everything.
        alpha: each client's classes are drawn in proportions of a Dirichlet distribution of this concentration (Hsu et
            al., 2019), its examples with replacement; None for examples of the whole training set.
    """
    data = load_dataset("digits")
    models, drawn = [], []
    for client in range(honest + dishonest + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + client)
            models.append(MLP(64, width=width, depth=2))
            drawn.append(_drawn(data.train_labels, examples, alpha))
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
    return Clients(states[:honest], states[honest:-1], states[-1], models[0], spec, (inputs[honest], labels[honest]))


def robust(malicious: int, trimmed: float = 0.25) -> dict[str, Callable[[], Strategy]]:
    """Flower's robust strategies, told how many attackers to expect, and FedAvg, which is none."""
    common = {"fraction_evaluate": 0.0}
    return {
        "FedMedian": lambda: FedMedian(**common),
        "FedTrimmedAvg": lambda: FedTrimmedAvg(**common, beta=trimmed),
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


def asked(clients: Clients, strategy: Strategy, sent: Sequence[State]) -> list[Message]:
    """One reply for each model, to a server whose own model is none of theirs."""
    grid = InlineGrid(ClientApp(), len(sent))
    start = {key: torch.roll(tensor, 1, 0) for key, tensor in clients.misled.items()}
    messages = strategy.configure_train(1, ArrayRecord(start), ConfigRecord(), grid)
    by_node = {message.metadata.dst_node_id: message for message in messages}
    replies = []
    for node_id, state in enumerate(sent, start=1):
        metrics = MetricRecord({"num-examples": 100, "train-loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord(dict(state)), "metrics": metrics})
        replies.append(Message(content, reply_to=by_node[node_id]))
    return replies


def aggregate(clients: Clients, strategy: Strategy, sent: Sequence[State]) -> State:
    """One round in which every model of ``sent`` is a reply."""
    arrays, _ = strategy.aggregate_train(1, asked(clients, strategy, sent))
    assert arrays is not None
    return to_state(arrays)


def aligned_beforehand(clients: Clients, matcher: Matcher, sent: Sequence[State]) -> list[State]:
    """The models in the order that the honest ones alone would have: what no attacker has had a part in."""
    reference = clients.honest[medoid(clients.spec, clients.honest, matcher)]
    return [matcher(clients.spec, reference=reference, candidate=state).apply(state) for state in sent]


class HandedOn(FedAvg):
    """What an alignment hands on to a strategy, which it keeps.

    Args:
        robust: whether it is one that expects attackers, so that outliers are set aside before it.
    """

    def __init__(self, robust: bool = True) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.robust = robust
        self.messages: list[Message] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.messages = list(replies)
        return self.messages[0].content.array_records["arrays"], None


def handed_on(clients: Clients, sent: Sequence[State], robust: bool = True) -> list[Message]:
    """The replies that an alignment hands on, aligned."""
    inner = HandedOn(robust)
    strategy = Aligned(inner, spec=clients.spec)
    strategy.aggregate_train(1, asked(clients, strategy, sent))
    return inner.messages


def positions(messages: Iterable[Message]) -> set[int]:
    """Of the models in these replies, among all that were sent."""
    return {message.metadata.src_node_id - 1 for message in messages}


def aggregated(strategy: Strategy, messages: Sequence[Message], set_aside: int = 0) -> State | None:
    """What a strategy makes of messages, which are left whole, behind an alignment that has set some aside."""
    copies = [
        carrying(message, {"arrays": ArrayRecord(dict(message.content.array_records["arrays"]))})
        for message in messages
    ]
    with expecting_fewer(strategy, set_aside, len(copies)):
        arrays, _ = strategy.aggregate_train(1, copies)
    return None if arrays is None else to_state(arrays)


@contextmanager
def remembering() -> Iterator[None]:
    """Within it a pair is matched once by the same matcher, an array decoded once, garbage not collected on demand."""
    known: dict[tuple[object, ...], Alignment] = {}
    match = WeightMatching.__call__

    def once(
        self: WeightMatching, spec: PermutationSpec, reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
    ) -> Alignment:
        pair = (self.method, _digest(reference), _digest(candidate))
        if pair not in known:
            known[pair] = match(self, spec, reference=reference, candidate=candidate)
        return known[pair]

    decoded: dict[bytes, NDArray[np.generic]] = {}
    decode = Array.numpy

    def numbers(self: Array) -> NDArray[np.generic]:
        if self.data not in decoded:
            decoded[self.data] = decode(self)
        return decoded[self.data]

    with (
        patch.object(WeightMatching, "__call__", once),
        patch.object(Array, "numpy", numbers),
        patch.object(gc, "collect", lambda *_: 0),  # Bulyan asks for it once for each reply: nine tenths of its time
    ):
        yield


def _digest(state: Mapping[str, Tensor]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for tensor in state.values():
        found.update(tensor.contiguous().numpy().data)
    return found.digest()
