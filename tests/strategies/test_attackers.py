"""20 % of the clients are attackers, behind an alignment: planted models, whose order and distances are known.

An honest model is one network plus noise of its own, its units in an order of its own: what matching finds and what is
told apart has room on every processor. ``test_trained_attackers.py`` judges trained models over seeds.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from flwr.serverapp.strategy import FedMedian

from benchmarks.support.attacks import ATTACKS
from benchmarks.support.federation import Clients, Remembered, aggregate, aligned_beforehand, robust
from fedrebasin import AlignTo, MergeMany, Permutation, PermutationSpec, WeightMatching, medoid
from fedrebasin.merging import align_to
from fedrebasin.models import MLP
from fedrebasin.strategies import Aligned

HONEST, ATTACKERS = 12, 3
NOISE = 0.3  # an honest model's distance from the planted one, in lengths of that
ONE_CLIENT = 1.2 * NOISE  # what an aggregate that is no worse than a client keeps within
# Nearer to every honest model than these are to one another: no strategy that compares replies tells it from them.
BEYOND_THEM = "permuted copies of the mean with a turned head"
AS_HONEST_ONES_DO = (BEYOND_THEM, "scale by 100", "permuted copies of an honest model")  # agree with the others


@dataclass(frozen=True)
class Planted(Clients):
    planted: dict[str, torch.Tensor]

    def error(self, state):
        """Distance from the planted model, in its order and in lengths of it."""
        found = WeightMatching(method="coordinate")(self.spec, reference=self.planted, candidate=state).apply(state)
        return norm({key: found[key] - tensor for key, tensor in self.planted.items()}) / norm(self.planted)


def norm(state):
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in state.values()))


@pytest.fixture(scope="module", params=range(2))
def clients(request):
    generator = torch.Generator().manual_seed(request.param)
    model = MLP(64, width=32, depth=2)
    spec = PermutationSpec.trace(model, torch.randn(2, 64, generator=generator))

    def drawn():
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        return {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}

    planted, misled = drawn(), drawn()

    def trained():
        noisy = {key: (planted[key] + NOISE * noise) / (1 + NOISE**2) ** 0.5 for key, noise in drawn().items()}
        return Permutation.random(spec, generator).apply(noisy)

    models = [trained() for _ in range(HONEST + ATTACKERS)]
    examples = torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 10
    return Planted(models[:HONEST], models[HONEST:], misled, model, spec, examples, planted)


@pytest.fixture(scope="module")
def matcher(clients):
    """Pairs are matched once for all strategies, in the choice of the reference as well."""
    remembered = Remembered(WeightMatching(method="coordinate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align_to, "medoid", lambda spec, states: medoid(spec, states, remembered))
        yield remembered


@pytest.fixture(scope="module", params=ATTACKS)
def attack(request, clients):
    return request.param, [*clients.honest, *ATTACKS[request.param](clients)]


@pytest.fixture(scope="module")
def honest_alone(clients, matcher):
    """Errors without attackers; Bulyan wants 4 f + 3 replies, so that it is told of as many as there may be."""
    made = {name: make() for name, make in robust((HONEST - 3) // 4).items()}
    strategies = {name: Aligned(inner, spec=clients.spec, aligner=AlignTo(matcher)) for name, inner in made.items()}
    return {name: clients.error(aggregate(clients, each, clients.honest)) for name, each in strategies.items()}


def test_honest_models_alone_are_aggregated_to_what_they_have_in_common(honest_alone):
    assert max(honest_alone.values()) < ONE_CLIENT
    means = [error for name, error in honest_alone.items() if name != "Krum"]  # which takes one of the models
    assert max(means) < ONE_CLIENT / 2


def test_the_reference_is_no_attackers_model(attack, clients, matcher):
    name, sent = attack
    if name not in AS_HONEST_ONES_DO:
        assert medoid(clients.spec, sent, matcher) < HONEST


@pytest.mark.parametrize("inner", [name for name in robust(1) if name != "FedAvg"])
def test_attackers_do_not_bring_the_aggregate_below_one_honest_client(attack, inner, clients, matcher, honest_alone):
    name, sent = attack
    strategy = robust(ATTACKERS)[inner]
    error = clients.error(aggregate(clients, Aligned(strategy(), spec=clients.spec, aligner=AlignTo(matcher)), sent))
    if name == BEYOND_THEM:  # alignment adds no way in: the strategy alone, told the honest order, makes the same of it
        known = clients.error(aggregate(clients, strategy(), aligned_beforehand(clients, matcher, sent)))
        assert error == pytest.approx(known, abs=0.02)
        return
    assert error < ONE_CLIENT
    if name != "permuted copies of an honest model" and inner in ("FedMedian", "FedTrimmedAvg"):  # of all good replies
        assert error == pytest.approx(honest_alone[inner], abs=0.004)  # the attackers are set aside


def test_fedavg_itself_stands_no_attack(clients, matcher):
    sent = [*clients.honest, *ATTACKS["flip signs and scale by 100"](clients)]
    strategy = Aligned(robust(ATTACKERS)["FedAvg"](), spec=clients.spec, aligner=AlignTo(matcher))
    assert clients.error(aggregate(clients, strategy, sent)) > 10


@pytest.mark.parametrize("name", ["scale by 100", "flip signs and scale by 100", "send noise"])
def test_without_a_reference_long_models_do_not_draw_the_others(name, clients):
    few = 4  # of the honest ones, to one attacker
    sent = [*clients.honest[:few], ATTACKS[name](clients)[0]]
    aligner = MergeMany(WeightMatching(method="coordinate"))
    strategy = Aligned(FedMedian(fraction_evaluate=0.0), spec=clients.spec, aligner=aligner)
    assert clients.error(aggregate(clients, strategy, sent)) < ONE_CLIENT
