"""An app after the shape of Flower's Hugging Face quickstart: a classifier of texts, batches as dicts with labels."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedrebasin import PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import ROUNDS, assert_keeps_working, partition_of
from tests.flower.orders import assert_orders_do_not_matter

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}


#: Which tells units and heads by their place.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(**SIZES, max_position_embeddings=16, **NO_DROPOUT)
        return transformers.BertForSequenceClassification(config)


def batches(partition, number=3):
    """Six tokens each, the last of them padding, as a collator gives them; the class is in the first."""
    generator = torch.Generator().manual_seed(partition)
    for _ in range(number):
        tokens = torch.randint(1, 40, (8, 6), generator=generator)
        mask = torch.ones_like(tokens)
        mask[:, -1] = 0
        yield {"input_ids": tokens * mask, "attention_mask": mask, "labels": tokens[:, 0] % 2}


def client(mods=()):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        model = make().train()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=True)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for batch in batches(partition_of(context)):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics = MetricRecord({"train-loss": float(loss.detach()), "num-examples": 24})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        model = make().eval()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        with torch.no_grad():
            (found,) = (model(**batch) for batch in batches(100 + partition_of(context), 1))
        metrics = MetricRecord({"loss": float(found.loss), "num-examples": 8})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def serve(grid, wrap, folder):
    def keep(server_round, arrays):
        model = make()
        model.load_state_dict(arrays.to_torch_state_dict())
        model.save_pretrained(folder / str(server_round))
        return MetricRecord({"parameters": model.num_parameters()})

    return wrap(FedAvg()).start(grid, ArrayRecord(make().state_dict()), num_rounds=ROUNDS, evaluate_fn=keep)


def spec():
    """From a batch as it is, in training mode."""
    return PermutationSpec.trace(make().train(), next(batches(0)))


def test_the_wrapped_app_leaves_the_same_behind(tmp_path):
    traced = spec()
    assert traced.checked
    assert traced.coverage > 0.95
    ran = assert_keeps_working(serve, client(), tmp_path, lambda strategy: FedRebasin(strategy, spec=traced))
    assert ran.metrics["train_metrics_clientapp"][ROUNDS]["rebasin-replies-set-aside"] == 0
    assert ran.warnings == ()
    assert f"{ROUNDS}/config.json" in ran.files


def test_clients_in_orders_of_their_own_make_one_model(tmp_path):
    def outputs(state):
        model = make().eval()
        model.load_state_dict(state)
        with torch.no_grad():
            return model(**next(batches(7))).logits

    assert_orders_do_not_matter(serve, client, spec(), outputs, tmp_path)
