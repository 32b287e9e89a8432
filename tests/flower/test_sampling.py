"""An app after the shape of Flower's variational autoencoder: convolutions, two heads, noise that the model draws."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import CLIENTS, ROUNDS, assert_keeps_working, partition_of

IMAGES = torch.zeros(2, 1, 8, 8)


class Sampling(nn.Module):
    """Its ``forward`` draws the latent numbers: 5 means and 5 log variances come out beside the images."""

    def __init__(self):
        super().__init__()
        down = (nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        up = (nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 1, 4, 2, 1), nn.Sigmoid())
        self.encoder, self.decoder = nn.Sequential(*down, nn.Flatten()), nn.Sequential(nn.Unflatten(1, (8, 2, 2)), *up)
        self.mean, self.log_variance, self.back = nn.Linear(32, 5), nn.Linear(32, 5), nn.Linear(5, 32)

    def forward(self, images):
        hidden = self.encoder(images)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(self.back(latent)), mean, log_variance


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Sampling()


def lost(model, images):
    found, mean, log_variance = model(images)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    return (nn.functional.mse_loss(found, images, reduction="sum") + divergence) / len(images)


def pictures(partition):
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(partition))


app = ClientApp()


def load(message, context):
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    torch.manual_seed(partition_of(context))
    return model


@app.train()
def train(message, context):
    model, images = load(message, context), pictures(partition_of(context))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = lost(model, images)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(images), "loss": float(loss.detach())})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    with torch.no_grad():
        loss = float(lost(load(message, context), pictures(100 + partition_of(context))))
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 16, "loss": loss})}), reply_to=message)


def serve(grid, wrap, folder):
    strategy = wrap(FedAvg(min_available_nodes=CLIENTS))
    result = strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=ROUNDS)
    torch.save(result.arrays.to_torch_state_dict(), folder / "final_model.pt")
    return result


def test_a_model_that_draws_its_own_noise_is_traced_and_aligned(tmp_path):
    spec = PermutationSpec.trace(make_model(), IMAGES)
    assert list(spec.groups) == ["encoder.0", "encoder.2", "decoder.1", "decoder.1[1]"]
    ran = assert_keeps_working(serve, app, tmp_path, lambda strategy: FedRebasin(strategy, spec=spec))
    assert ran.metrics["train_metrics_clientapp"][2]["rebasin-replies-set-aside"] == 0
    assert ran.warnings == ()
