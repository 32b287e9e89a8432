"""20 % of the clients are attackers; trained models, each from its own initialisation, behind an alignment."""

import sys

import pytest
import torch
from flwr.serverapp.strategy import FedMedian

from benchmarks.support.attacks import ATTACKS, Remembered, aggregate, aligned_beforehand, robust, train_clients
from fedrebasin import AlignTo, MergeMany, WeightMatching, medoid
from fedrebasin.strategies import Aligned

placing = sys.modules[Aligned.__module__.rpartition(".")[0] + ".placing"]

HONEST, ATTACKERS = 12, 3
TOLERATED = 0.02
# Nearer to every honest model than these are to one another: no strategy that compares replies tells it from them.
BEYOND_THEM = "permuted copies of the mean with a turned head"


@pytest.fixture(scope="module")
def clients():
    torch.set_num_threads(1)
    return train_clients(HONEST, ATTACKERS, width=96, examples=700, steps=100)


@pytest.fixture(scope="module")
def matcher():
    """Pairs are matched once for all strategies, in the choice of the reference as well."""
    remembered = Remembered(WeightMatching(method="coordinate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "medoid", lambda spec, states: medoid(spec, states, remembered))
        yield remembered


@pytest.fixture(scope="module")
def honest_alone(clients, matcher):
    """Accuracy without attackers; Bulyan wants 4 f + 3 replies, so that it is told of as many as there may be."""
    spec, made = clients.spec, robust((HONEST - 3) // 4)
    strategies = {name: Aligned(make(), spec=spec, aligner=AlignTo(matcher)) for name, make in made.items()}
    return {name: clients.accuracy(aggregate(clients, each, clients.honest)) for name, each in strategies.items()}


@pytest.fixture(scope="module", params=ATTACKS)
def attack(request, clients):
    return request.param, [*clients.honest, *ATTACKS[request.param](clients)]


def test_the_reference_is_no_attackers_model(attack, clients, matcher):
    name, sent = attack
    chosen = medoid(clients.spec, sent, matcher)
    if name not in (BEYOND_THEM, "scale by 100", "permuted copies of an honest model"):  # these agree as honest ones do
        assert chosen < HONEST


@pytest.mark.parametrize("inner", [name for name in robust(1) if name != "FedAvg"])
def test_attackers_do_not_bring_the_aggregate_below_the_honest_ones(attack, inner, clients, matcher, honest_alone):
    name, sent = attack
    strategy = robust(ATTACKERS)[inner]
    aligned = aggregate(clients, Aligned(strategy(), spec=clients.spec, aligner=AlignTo(matcher)), sent)
    accuracy = clients.accuracy(aligned)
    assert honest_alone[inner] > 0.9
    if name == BEYOND_THEM:  # the strategy alone fails as well
        known = aggregate(clients, strategy(), aligned_beforehand(clients, matcher, sent))
        assert accuracy > clients.accuracy(known) - TOLERATED
        return
    assert accuracy > honest_alone[inner] - TOLERATED, name


def test_fedavg_itself_stands_no_attack(clients, matcher, honest_alone):
    sent = [*clients.honest, *ATTACKS["flip signs and scale by 100"](clients)]
    strategy = Aligned(robust(ATTACKERS)["FedAvg"](), spec=clients.spec, aligner=AlignTo(matcher))
    assert clients.accuracy(aggregate(clients, strategy, sent)) < 0.5 < honest_alone["FedAvg"]


@pytest.mark.parametrize("name", ["scale by 100", "flip signs and scale by 100", "send noise"])
def test_without_a_reference_long_models_do_not_draw_the_others(name, clients):
    few = 4  # of the honest ones, to one attacker
    sent = [*clients.honest[:few], ATTACKS[name](clients)[0]]
    aligner = MergeMany(WeightMatching(method="coordinate"))

    def accuracy(states):
        strategy = Aligned(FedMedian(fraction_evaluate=0.0), spec=clients.spec, aligner=aligner)
        return clients.accuracy(aggregate(clients, strategy, states))

    assert accuracy(sent) > accuracy(sent[:few]) - TOLERATED
