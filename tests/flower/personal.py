"""Clients after the shape of personalisation examples: some arrays are sent, the others are kept in the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import ROUNDS, Serve, Wrap, fit, make_data, partition_of, score

Keeps = Callable[[str], bool]
KEPT = "kept"


class Net(nn.Module):
    """A body of two hidden layers, with norms if wanted, and a head."""

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU())
        if norms:
            self.body.insert(3, nn.BatchNorm1d(10)).insert(1, nn.BatchNorm1d(12))
        self.head = nn.Linear(10, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.body(inputs))
        return logits


def make(norms: bool = False, seed: int = 0) -> Net:
    """With numbers of their own where there are norms, which begin with ones and zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(norms)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
        return net.eval()


def personal_app(norms: bool, keeps: Keeps, fitting: Callable[..., float] = fit) -> ClientApp:
    """Clients that train what they are sent together with what they have kept, and send the one part only."""
    app = ClientApp()

    def net_of(message: Message, context: Context) -> Net:
        net = make(norms)
        kept = context.state.array_records.get(KEPT, ArrayRecord())
        for record in (kept, message.content["arrays"]):
            net.load_state_dict(record.to_torch_state_dict(), strict=False)
        return net

    @app.train()
    def train(message: Message, context: Context) -> Message:
        net, data = net_of(message, context).train(), make_data(partition_of(context))
        loss = fitting(net, data)
        state = net.state_dict()
        context.state[KEPT] = ArrayRecord({key: tensor for key, tensor in state.items() if keeps(key)})
        sent = ArrayRecord({key: tensor for key, tensor in state.items() if not keeps(key)})
        metrics = MetricRecord({"train-loss": loss, "num-examples": len(data[0])})
        return Message(RecordDict({"arrays": sent, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        net, data = net_of(message, context).eval(), make_data(100 + partition_of(context))
        metrics = MetricRecord({**score(net, data), "num-examples": len(data[0])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def sender(norms: bool, keeps: Keeps) -> Serve:
    """A server side that sends what is not kept."""
    arrays = ArrayRecord({key: tensor for key, tensor in make(norms).state_dict().items() if not keeps(key)})
    return lambda grid, wrap, folder: wrap(FedAvg(fraction_evaluate=1.0)).start(grid, arrays, num_rounds=ROUNDS)


def in_frame(norms: bool, frame: str) -> Wrap:
    """Aligned, in the server's or in the nodes' own order of units."""
    spec = PermutationSpec.trace(make(norms), torch.zeros(2, 8))
    return lambda strategy: FedRebasin(strategy, spec=spec, frame=frame)


class Strangers:
    """Clients that have one and the same function before they join, each in an order of units of its own.

    Args:
        norms: of the model.
        keeps: what stays with them.
        free: the groups in whose units they differ; all if None.

    ``errors`` says how far the outputs of what is received and what was kept are from those before.
    """

    def __init__(self, norms: bool, keeps: Keeps, free: Sequence[str] | None = None) -> None:
        self.net, self.keeps, self.app = make(norms, seed=7), keeps, ClientApp()
        self.errors: list[float] = []
        spec = PermutationSpec.trace(self.net, torch.zeros(2, 8))
        self.spec = spec if free is None else spec.freeze(set(spec.groups) - set(free))
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def _own(self, context: Context) -> dict[str, Tensor]:
        """The client's model before it joined."""
        state = {key: tensor.detach() for key, tensor in self.net.state_dict().items()}
        return Permutation.random(self.spec, torch.Generator().manual_seed(context.node_id)).apply(state)

    def _compare(self, message: Message, context: Context) -> None:
        if KEPT in context.state:  # it has taken part before
            inputs, _ = make_data(0)
            received = message.content["arrays"].to_torch_state_dict()
            with torch.no_grad():
                outputs = torch.func.functional_call(self.net, {**self._own(context), **received}, (inputs,))
                self.errors.append(float((outputs - self.net(inputs)).abs().max()))

    def _evaluate(self, message: Message, context: Context) -> Message:
        self._compare(message, context)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        self._compare(message, context)
        own = self._own(context)
        context.state[KEPT] = ArrayRecord({key: tensor for key, tensor in own.items() if self.keeps(key)})
        sent = ArrayRecord({key: tensor for key, tensor in own.items() if not self.keeps(key)})
        return Message(RecordDict({"arrays": sent, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
