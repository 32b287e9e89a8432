"""20 % of the clients are attackers: trained models, each from its own initialisation, judged over seeds.

A training run's rounding decides whether a model that lies near a threshold is set aside, so that no single run is
judged. The margins are twice what 15 to 20 seeds lost at worst; ``benchmarks/attackers.py`` measures.
"""

from statistics import fmean

import pytest

from benchmarks.support.attacks import ATTACKS
from benchmarks.support.federation import Remembered, aggregate, aligned_beforehand, robust, train_clients
from fedrebasin import AlignTo, WeightMatching, medoid
from fedrebasin.merging import align_to
from fedrebasin.strategies import Aligned

pytestmark = pytest.mark.slow

HONEST, ATTACKERS = 12, 3
SEEDS = range(3)
OUT_OF_STEP = "permuted copies with layers out of step"
TURNED_HEAD = "permuted copies of the mean with a turned head"
#: What an attack may cost on the mean over seeds; ``WEAK`` are known weaknesses. Three models that are copies of one
#: but for a layer may pass for honest ones, and are then three of the five that MultiKrum takes.
USUAL = 0.05
WEAK = {(OUT_OF_STEP, "MultiKrum"): 0.6, (OUT_OF_STEP, "Bulyan"): 0.25, (OUT_OF_STEP, "FedMedian"): 0.08}


@pytest.fixture(scope="module")
def runs():
    """By seed: clients, and accuracies by attack and inner strategy; "" is no attack, and no alignment's is "known"."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for seed in SEEDS:
            clients = train_clients(HONEST, ATTACKERS, width=96, examples=700, steps=100, seed=seed)
            matcher = Remembered(WeightMatching(method="coordinate"))
            patch.setattr(align_to, "medoid", lambda spec, states, matcher=matcher: medoid(spec, states, matcher))

            def behind(inner, sent, clients=clients, matcher=matcher):
                aligned = Aligned(inner, spec=clients.spec, aligner=AlignTo(matcher))
                return clients.accuracy(aggregate(clients, aligned, sent))

            for name, make in robust((HONEST - 3) // 4).items():  # Bulyan wants 4 f + 3 replies
                found[seed, "", name] = behind(make(), clients.honest)
            for attack, send in ATTACKS.items():
                sent = [*clients.honest, *send(clients)]
                for name, make in robust(ATTACKERS).items():
                    found[seed, attack, name] = behind(make(), sent)
                    if attack == TURNED_HEAD:
                        beforehand = aligned_beforehand(clients, matcher, sent)
                        known = clients.accuracy(aggregate(clients, make(), beforehand))
                        found[seed, "known", name] = known
    return lambda attack, inner: [found[seed, attack, inner] for seed in SEEDS]


@pytest.mark.parametrize("inner", robust(1))
def test_honest_models_alone_make_a_good_one(inner, runs):
    assert min(runs("", inner)) > 0.85


@pytest.mark.parametrize("inner", [name for name in robust(1) if name != "FedAvg"])
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != TURNED_HEAD])
def test_what_attackers_cost(attack, inner, runs):
    lost = fmean(runs("", inner)) - fmean(runs(attack, inner))
    assert lost < WEAK.get((attack, inner), USUAL)


@pytest.mark.parametrize("inner", [name for name in robust(1) if name != "FedAvg"])
def test_where_the_strategy_alone_fails_alignment_adds_no_way_in(inner, runs):
    assert fmean(runs(TURNED_HEAD, inner)) > fmean(runs("known", inner)) - 0.1


def test_fedavg_itself_stands_no_attack(runs):
    assert max(runs("flip signs and scale by 100", "FedAvg")) < 0.5
