"""A small federation on digits, one of whose clients answers requests for sums with forged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from fedrebasin.simulations.data import make_partition
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedrebasin import AlignTo, PermutationSpec, WeightMatching
from fedrebasin.simulations import InlineGrid, load_dataset
from fedrebasin.strategies import Aligned, Calibrator, Probe, StatisticsMod, to_state

from .federation import Remembered

State = dict[str, Tensor]
Sums = dict[str, Tensor]
Forgery = Callable[[Sums, Sums], Sums]  # the forger's honest sums, and those of a liar

FORGER = 2  # its partition


def make_model(width: int) -> nn.Sequential:
    """A layer with BatchNorm, for its moments, and one without, for REPAIR."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    )


@dataclass(frozen=True)
class Clients:
    """Trained models, each from its own initialisation and on its own part of the data.

    Args:
        states: their models.
        parts: their examples and labels.
        width: of the models.
        spec: their permutation spec.
        matcher: which matches each pair once.
    """

    states: list[State]
    parts: list[tuple[Tensor, Tensor]]
    width: int
    spec: PermutationSpec
    matcher: Remembered = field(default_factory=lambda: Remembered(WeightMatching(method="coordinate")))

    def measure(self, state: State, beta: float) -> tuple[float, float]:
        """Accuracy in % and mean loss of ``beta * logits`` on the test set."""
        data = load_dataset("digits")
        logits = functional_call(make_model(self.width).eval(), state, (data.test_inputs,))
        accuracy = float((logits.argmax(1) == data.test_labels).double().mean())
        return 100 * accuracy, float(cross_entropy(beta * logits, data.test_labels))


def train_clients(count: int, split: str, alpha: float, width: int, steps: int, seed: int) -> Clients:
    """Train all of them, each on all of its part at once."""
    data = load_dataset("digits")
    parts, states = [], []
    for client, index in enumerate(make_partition(data.train_labels.numpy(), split, count, alpha, seed)):
        where = torch.from_numpy(index)
        inputs, labels = data.train_inputs[where], data.train_labels[where]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + client)
            model = make_model(width)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
        for _ in range(steps if len(labels) > 1 else 0):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        parts.append((inputs, labels))
        states.append({key: tensor.detach().clone() for key, tensor in model.eval().state_dict().items()})
    spec = PermutationSpec.trace(make_model(width).eval(), data.train_inputs[:2], check=False)
    return Clients(states, parts, width, spec)


def _turned(sums: Sums) -> Sums:
    """Sums that some data have, and that say the contrary: of features in another order, of outputs turned round."""
    turned = dict(sums)
    for key, tensor in sums.items():
        part = key.rpartition(".")[2]
        if part == "gram" and "cross" not in sums and "classes" not in sums:
            order = torch.cat([torch.arange(tensor.shape[-1] - 1).flip(0), torch.tensor([tensor.shape[-1] - 1])])
            turned[key] = tensor[:, order][:, :, order]
        elif part == "cross":
            turned[key] = -tensor if key == "cross" else tensor.roll(1, 1)
        elif part in ("own", "own_squares"):
            turned[key] = tensor.roll(1, 0)
        elif part == "sum":
            turned[key] = -tensor
    return turned


def liar_of(clients: Clients, honest: StatisticsMod) -> Callable[..., Message]:
    """Answers as the forger would whose labels are all the next ones, and whose features are others."""

    def batches(context: object) -> list[tuple[Tensor, Tensor]]:
        inputs, labels = clients.parts[FORGER]
        return [(inputs, (labels + 1) % 10)]

    return StatisticsMod(honest.model, batches, min_examples=1).answer


def run(
    clients: Clients,
    inner: Strategy,
    calibrator: Calibrator | None,
    forgery: Forgery | None,
    probes: tuple[Probe, ...] = (),
) -> tuple[State, dict[str, float]]:
    """One round in which every client sends its model and answers; the forger's answers are forged.

    Returns:
        the model, and the round's metrics.
    """
    app = ClientApp()
    mod = StatisticsMod(
        lambda context: make_model(clients.width).eval(),
        lambda context: [clients.parts[int(context.node_config["partition-id"])]],
        min_examples=1,
    )
    lie = liar_of(clients, mod)

    @app.query("fedrebasin")
    def _(message, context):  # type: ignore[no-untyped-def]
        reply = mod.answer(message, context)
        if forgery is None or context.node_config["partition-id"] != FORGER:
            return reply
        own, other = (each.content["sums"].to_torch_state_dict() for each in (reply, lie(message, context)))
        forged = forgery(dict(own), _turned(dict(other)))
        return Message(RecordDict({"sums": ArrayRecord(forged), "metrics": MetricRecord({})}), reply_to=message)

    strategy = Aligned(
        inner,
        spec=clients.spec,
        aligner=AlignTo(clients.matcher, reference=clients.states[0]),
        calibrators=[] if calibrator is None else [calibrator],
        probes=probes,
    )
    grid = InlineGrid(app, len(clients.states))
    start = ArrayRecord(make_model(clients.width).state_dict())
    asked = {m.metadata.dst_node_id: m for m in strategy.configure_train(1, start, ConfigRecord(), grid)}
    replies = []
    for node_id, (state, (_, labels)) in enumerate(zip(clients.states, clients.parts, strict=True), start=1):
        metrics = MetricRecord({"num-examples": len(labels), "train-loss": 0.5})
        replies.append(Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=asked[node_id]))
    arrays, found = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert found is not None
    return to_state(arrays), {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
