"""The models, data and clients of the files that 0.1.0 wrote; nothing here depends on fedrebasin."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

FEATURES, HIDDEN, CLASSES, CLIENTS = 5, 4, 3, 2


def mlp():
    layers = (nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES)).eval()


def convolutions():
    """Channels that are flattened with their pixels, in two strides."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 3)
    ).eval()


def attention():
    """Heads, units in them, and packed projections."""
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()


def recurrent():
    """Gates one after the other in one tensor."""
    return nn.LSTM(3, 4, batch_first=True).eval()


#: By name: the model and an example input.
TRACED = {
    "convolutions": (convolutions, (2, 1, 7, 7)),
    "attention": (attention, (2, 5, 8)),
    "recurrent": (recurrent, (2, 5, 3)),
}


def random_state(make, seed):
    """A model's parameters, from a seed, by plain arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    state = make().state_dict()
    return {
        key: torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(20, FEATURES, generator=generator), torch.arange(20) % CLASSES)]


def clients():
    """Each adds numbers of its own to what it gets, and in the first round reverses its hidden units."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        generator = torch.Generator().manual_seed(100 * node + message.content["config"]["server-round"])
        state = message.content["arrays"].to_torch_state_dict()
        if message.content["config"]["server-round"] == 1 and node:
            for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
                state[key] = state[key].flip(0)
            state["3.weight"] = state["3.weight"].flip(1)
        trained = {
            key: tensor + 0.01 * torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
            for key, tensor in state.items()
        }
        content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": 5 + node})}
        return Message(RecordDict(content), reply_to=message)

    return app
