"""Activation matching from sums: the same permutations as with the clients' data in hand."""

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrebasin import (
    ActivationMatching,
    Alignment,
    AlignTo,
    History,
    Identity,
    MatchingError,
    Permutation,
    PermutationSpec,
    RebasinError,
)
from fedrebasin.matching import match_relations
from fedrebasin.merging import cosine
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import ActivationAlignment, Aligned, RegMean, register

CLIENTS, FEATURES, HIDDEN = 3, 6, 12
EXAMPLE = torch.zeros(1, FEATURES)


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3)
        )


SPEC = PermutationSpec.trace(make_model(), EXAMPLE)


class Still:
    """A matcher that matches nothing: what is aligned afterwards is the calibrator's work."""

    def __call__(self, spec, reference, candidate):
        similarity = cosine(spec, reference, candidate)
        return Alignment(Permutation.identity(spec), similarity, History((similarity,), 0.0, True, "still"))


def states(noise):
    base, found = make_model().state_dict(), []
    for client in range(CLIENTS):
        generator = torch.Generator().manual_seed(client)
        copy = {key: tensor + noise * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()}
        found.append(Permutation.random(SPEC, generator).apply(copy) if client else copy)
    return found


def batches(client):
    return [
        (torch.randn(80 + client, FEATURES, generator=torch.Generator().manual_seed(client)), torch.zeros(80 + client))
    ]


def run(models, calibrators, aligner=None, examples=None, silent=()):
    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        count = examples[client] if examples else 1
        content = {"arrays": ArrayRecord(models[client]), "metrics": MetricRecord({"num-examples": count})}
        return Message(RecordDict(content), reply_to=message)

    def data(context: Context):
        client = context.node_config["partition-id"]
        return [] if client in silent else batches(client)

    register(app, model=lambda context: make_model(), batches=data, min_examples=0)
    strategy = Aligned(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS),
        spec=SPEC,
        aligner=aligner or AlignTo(Still(), reference=0),
        calibrators=calibrators,
    )
    result = strategy.start(InlineGrid(app, CLIENTS), ArrayRecord(make_model().state_dict()), num_rounds=1)
    return result.arrays.to_torch_state_dict(), dict(result.train_metrics_clientapp[1])


def close(a, b):
    return all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


def test_permuted_copies_become_one():
    models = states(noise=0.0)
    merged, metrics = run(models, [ActivationAlignment(make_model(), EXAMPLE)])
    assert close(merged, models[0])
    assert metrics["rebasin-activation-alignment-left-out"] == 0


def test_clients_sums_give_what_their_data_would():
    models, weights = states(noise=0.3), [1, 2, 5]
    merged, _ = run(models, [ActivationAlignment(make_model(), EXAMPLE)], examples=weights)
    aligned = [models[0]]
    for client in range(1, CLIENTS):
        matcher = ActivationMatching(make_model(), [batches(client)[0][0]], correlation=True)
        aligned.append(matcher(SPEC, models[0], models[client]).apply(models[client]))
    total = sum(weights)
    for key in merged:
        expected = sum(weight * state[key] for weight, state in zip(weights, aligned, strict=True)) / total
        assert torch.allclose(merged[key], expected, atol=1e-5), key


def test_what_follows_sees_the_models_as_they_are_aligned_here():
    models = states(noise=0.0)
    merged, _ = run(models, [ActivationAlignment(make_model(), EXAMPLE), RegMean()])
    assert close(merged, models[0])  # RegMean of equal models is that model


def test_a_client_without_data_stays_as_it_was_aligned():
    models = states(noise=0.0)
    merged, metrics = run(models, [ActivationAlignment(make_model(), EXAMPLE)], silent=(2,))
    assert metrics["rebasin-activation-alignment-left-out"] == 1
    mean = {key: (2 * models[0][key] + models[2][key]) / 3 for key in merged}
    assert close(merged, mean)


def test_without_any_answer_the_aggregate_stays():
    models = states(noise=0.0)
    plain, _ = run(models, [])
    merged, metrics = run(models, [ActivationAlignment(make_model(), EXAMPLE)], silent=range(CLIENTS))
    assert close(merged, plain)
    assert metrics["rebasin-activation-alignment-failed"] == 1


def test_nothing_is_aligned_anew_where_nothing_was_aligned():
    with pytest.raises(RebasinError, match="ActivationAlignment needs aligned models"):
        run(states(noise=0.0), [ActivationAlignment(make_model(), EXAMPLE)], aligner=Identity())


@pytest.mark.parametrize("shape", [(2, 2), (HIDDEN, HIDDEN + 1)])
def test_relations_of_another_shape_are_refused(shape):
    with pytest.raises(MatchingError, match="instead of 12 by 12"):
        match_relations(SPEC, {next(iter(SPEC.groups)): torch.zeros(shape)})
