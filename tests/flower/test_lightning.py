"""An app after the shape of Flower's Lightning quickstart: an autoencoder whose forward is its encoder."""

import logging
import warnings

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import ROUNDS, assert_keeps_working, make_data, partition_of
from tests.flower.orders import assert_orders_do_not_matter

lightning = pytest.importorskip("lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Autoencoder(lightning.LightningModule):
    """8 inputs, 3 in the middle."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, inputs):
        return self.encoder(inputs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        inputs, _ = batch
        loss = nn.functional.mse_loss(self.decoder(self.encoder(inputs)), inputs)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder()


def trainer():
    return lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(partition):
    return DataLoader(TensorDataset(*make_data(partition)), batch_size=8)


def client(mods=()):
    app = ClientApp(mods=list(mods))

    def sent(message):
        model = make()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        return model

    @app.train()
    def train(message, context):
        model, running = sent(message), trainer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            running.fit(model, loader(partition_of(context)))
        metrics = MetricRecord({"train-loss": float(running.callback_metrics["train_loss"]), "num-examples": 32})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (found,) = trainer().test(sent(message), loader(100 + partition_of(context)), verbose=False)
        metrics = MetricRecord({"loss": found["test_loss"], "num-examples": 32})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def serve(grid, wrap, folder):
    result = wrap(FedAvg()).start(grid, ArrayRecord(make().state_dict()), num_rounds=ROUNDS)
    losses = [str(dict(found)) for found in result.evaluate_metrics_clientapp.values()]
    (folder / "losses.txt").write_text("\n".join(losses))
    return result


def spec():
    """From a batch, as the clients' loaders give it."""
    return PermutationSpec.trace(make(), next(iter(loader(0))))


def test_the_wrapped_app_leaves_the_same_behind_and_aligns_the_decoder_too(tmp_path):
    traced = spec()
    assert {axis.key for group in traced.groups.values() for axis in group.axes} >= {
        "encoder.0.weight",
        "decoder.0.weight",
    }
    ran = assert_keeps_working(serve, client(), tmp_path, lambda strategy: FedRebasin(strategy, spec=traced))
    assert ran.metrics["train_metrics_clientapp"][ROUNDS]["rebasin-replies-set-aside"] == 0
    assert ran.warnings == ()


def test_clients_in_orders_of_their_own_make_one_model(tmp_path):
    def outputs(state):
        model = make()
        model.load_state_dict(state)
        with torch.no_grad():
            return model.decoder(model.encoder(make_data(7)[0]))

    assert_orders_do_not_matter(serve, client, spec(), outputs, tmp_path)
