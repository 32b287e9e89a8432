"""An app after the shape of Flower's autoencoder example: what is trained predicts no classes."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedMedian
from torch import nn

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, make_data, partition_of


class Autoencoder(nn.Module):
    """A variational one: means and log variances of 3 latent numbers."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(16, 3), nn.Linear(16, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, inputs, noise=None):
        hidden = self.encoder(inputs)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean if noise is None else mean + noise * (0.5 * log_variance).exp()
        return self.decoder(latent), mean, log_variance


def make_autoencoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Autoencoder()


def lost(model, inputs, noise=None):
    found, mean, log_variance = model(inputs, noise)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
    return nn.functional.mse_loss(found, inputs) + 0.1 * divergence


app = ClientApp()


def load(message):
    model = make_autoencoder()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message, context):
    model, (inputs, _) = load(message), make_data(partition_of(context))
    generator = torch.Generator().manual_seed(partition_of(context))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = lost(model, inputs, torch.randn(len(inputs), 3, generator=generator))
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(inputs), "loss": float(loss.detach())})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    model, (inputs, _) = load(message), make_data(100 + partition_of(context))
    with torch.no_grad():
        metrics = MetricRecord({"num-examples": len(inputs), "loss": float(lost(model, inputs))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def serve(grid, wrap, folder):
    strategy = wrap(FedMedian(min_available_nodes=CLIENTS))
    result = strategy.start(grid, ArrayRecord(make_autoencoder().state_dict()), num_rounds=ROUNDS)
    model = make_autoencoder()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    with torch.no_grad():
        images = model.decoder(torch.zeros(2, 3))
    (folder / "generated.txt").write_text("\n".join(["image"] * len(images)))
    return result


def test_an_autoencoder_is_aligned_in_encoder_and_decoder(tmp_path):
    spec = PermutationSpec.trace(make_autoencoder(), (torch.zeros(2, 8), torch.zeros(2, 3)))
    assert list(spec.groups) == ["encoder.0", "decoder.0"]
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
