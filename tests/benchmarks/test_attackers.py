"""The attackers' benchmark: what attacks send, that the alignment is the real one, intervals and verdicts."""

import pytest
import torch
from torch.func import functional_call

from benchmarks.support.attacked import ALIGNMENTS, BEFOREHAND, NONE, NOT, US, Cell, Federation, Setting
from benchmarks.support.attacker_tables import INNER, behind, means, notable, risks, section, verdicts
from benchmarks.support.attacks import (
    ADAPTIVE,
    ATTACKS,
    HIDDEN,
    Insider,
    as_far_as,
    finer,
    in_groups,
    little_is_enough,
    rescaled,
    turned,
)
from benchmarks.support.federation import (
    Clients,
    aggregate,
    aggregated,
    handed_on,
    positions,
    remembering,
    robust,
    train_clients,
)
from benchmarks.support.intervals import mean_interval, wilson
from fedrebasin import Permutation, PermutationSpec, WeightMatching
from fedrebasin.models import MLP
from fedrebasin.strategies import Aligned

HONEST, ATTACKERS, WIDTH = 9, 2, 16


def drawn(model, generator):
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    return {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}


@pytest.fixture(scope="module", params=[0])
def clients(request):
    """Planted: one network, a little noise of each client's own, and an order of its own."""
    generator = torch.Generator().manual_seed(request.param)
    model = MLP(64, width=WIDTH, depth=2)
    spec = PermutationSpec.trace(model, torch.randn(2, 64, generator=generator))
    planted, misled = drawn(model, generator), drawn(model, generator)

    def trained():
        own = drawn(model, generator)
        state = {key: tensor + 0.3 * own[key] for key, tensor in planted.items()}
        return Permutation.random(spec, generator).apply(state)

    states = [trained() for _ in range(HONEST + ATTACKERS)]
    examples = torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 10
    with remembering():
        yield Clients(states[:HONEST], states[HONEST:], misled, model, spec, examples)


def demand_form(clients, models):
    assert len(models) == ATTACKERS
    for state in models:
        assert {key: (t.shape, t.dtype) for key, t in state.items()} == {
            key: (t.shape, t.dtype) for key, t in clients.honest[0].items()
        }
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.mark.parametrize("attack", [*ATTACKS, *HIDDEN])
def test_attackers_send_models_of_the_right_form_and_leave_the_others_alone(attack, clients):
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in (*clients.honest, *clients.dishonest)]
    demand_form(clients, {**ATTACKS, **HIDDEN}[attack](clients))
    for state, was in zip((*clients.honest, *clients.dishonest), before, strict=True):
        assert all(torch.equal(tensor, was[key]) for key, tensor in state.items())


def head_turned(clients, state):
    return sum(float((state[key] * clients.mean[key]).sum()) for key in ("layers.2.weight", "layers.2.bias")) < 0


@pytest.mark.parametrize("attack", ADAPTIVE)
def test_adaptive_attackers_are_not_caught_by_rules_that_they_know(attack, clients):
    """The rule: the whole model may lie no farther from the honest mean than three times the farthest honest one."""

    def away(state):
        return sum(float((tensor - clients.mean[key]).square().sum()) for key, tensor in state.items()) ** 0.5

    most = 3 * max(away(state) for state in clients.aligned)

    def caught(models):
        return {at for at, state in enumerate(models) if at >= HONEST and away(state) > most}

    models = ADAPTIVE[attack](Insider(clients, caught))
    demand_form(clients, models)
    assert not caught([*clients.honest, *models])


@pytest.mark.parametrize(("limit", "expected"), [(0.12, finer(0.5)), (2.0, 1.0), (-1.0, 0.0), (0.999, finer(15 / 16))])
def test_the_strongest_that_passes_is_found_by_bisection(limit, expected, clients):
    def send(strength):
        return [{"strength": strength} for _ in clients.dishonest]

    insider = Insider(clients, lambda models: {HONEST} if models[HONEST]["strength"] > limit else {0})
    assert insider.strongest(send)[0]["strength"] == expected


def test_rescaled_units_compute_the_same(clients):
    inputs = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for state in clients.honest[:2]:
        found = functional_call(clients.model, rescaled(state, 4.0), (inputs,))
        torch.testing.assert_close(found, functional_call(clients.model, state, (inputs,)), rtol=1e-4, atol=1e-4)


def test_units_in_a_group_are_alike_and_the_sum_of_all_is_kept(clients):
    state = clients.mean
    found = in_groups(state, 4)
    for key in ("layers.0.weight", "layers.1.weight"):
        alike = torch.cdist(found[key], found[key]) < 1e-4
        assert bool((alike.sum(1) >= 4).all())
    torch.testing.assert_close(found["layers.0.weight"].sum(0), state["layers.0.weight"].sum(0), rtol=1e-4, atol=1e-4)


def test_deviations_that_are_enough(clients):
    assert little_is_enough(clients) == pytest.approx(0.1397, abs=1e-4)  # (9 - 4) / 9 of the normal distribution


@pytest.mark.parametrize("worst", [lambda squared: squared.amax(-1), lambda squared: squared.sum(-1)])
def test_the_farthest_model_is_just_as_far_as_honest_ones(worst, clients):
    flat = torch.stack([torch.cat([tensor.flatten() for tensor in state.values()]) for state in clients.aligned])
    most = worst(torch.cdist(flat, flat).square()).max()
    match = WeightMatching()(clients.spec, reference=clients.mean, candidate=as_far_as(clients, worst)[0])
    sent = match.apply(as_far_as(clients, worst)[0])
    away = torch.cat([tensor.flatten() for tensor in sent.values()])
    assert float(worst((flat - away).square().sum(1)) / most) == pytest.approx(1.0, abs=0.02)


@pytest.fixture(scope="module")
def setting():
    return Setting(None, HONEST, ATTACKERS, 1)


@pytest.mark.parametrize("attack", ["flip signs", "send noise", "permuted copies of a misled model"])
def test_who_is_caught_does_not_depend_on_places_and_orders_of_units(attack, clients, setting):
    generator = torch.Generator().manual_seed(0)
    for seed in range(2):
        federation = Federation(clients, setting, seed)
        models = federation.sent(attack)
        assert federation.caught(models) >= set(range(HONEST, HONEST + ATTACKERS))
        moved = [Permutation.random(clients.spec, generator).apply(state) for state in models]
        assert federation.caught(moved) == federation.caught(models)


@pytest.mark.parametrize("attack", ["flip signs", "own models with turned heads"])
@pytest.mark.parametrize("inner", INNER)
def test_what_is_handed_on_once_gives_what_the_strategy_behind_the_alignment_gives(attack, inner, clients, setting):
    federation = Federation(clients, setting, 0)
    sent, _ = federation.mixed(federation.sent(attack))
    make = robust(ATTACKERS)[inner]
    messages = handed_on(clients, sent, robust=inner != "FedAvg")
    direct = aggregate(clients, Aligned(make(), spec=clients.spec), sent)
    found = aggregated(make(), messages, len(sent) - len(messages))
    for key, tensor in direct.items():
        torch.testing.assert_close(found[key].to(tensor.dtype), tensor, rtol=1e-5, atol=1e-6)


def test_a_cell_has_what_each_strategy_makes_behind_the_alignment(clients, setting):
    """FedAvg among them, which gets the attackers' replies as well."""
    federation = Federation(clients, setting, 0)
    models = federation.sent("flip signs and scale by 100")
    cell = federation.measure("flip signs and scale by 100", models, US)
    for inner, make in robust(ATTACKERS).items():
        direct = aggregate(clients, Aligned(make(), spec=clients.spec), federation.mixed(models)[0])
        assert cell.accuracy[inner] == pytest.approx(clients.accuracy(direct), abs=0.01)
    assert cell.accuracy["FedAvg"] != cell.accuracy["FedMedian"]


def test_cells_count_whom_the_alignment_sets_aside(clients, setting):
    federation = Federation(clients, setting, 5)
    sent = federation.sent("flip signs")
    cells = {alignment: federation.measure("flip signs", sent, alignment) for alignment in ALIGNMENTS}
    assert (cells[US].caught, cells[BEFOREHAND].caught, cells[NOT].caught) == (ATTACKERS, 0, 0)
    assert all(list(cell.accuracy) == list(robust(1)) and not cell.triggered for cell in cells.values())
    assert federation.measure("backdoor near the mean", sent, NOT).triggered.keys() == robust(1).keys()


def test_the_same_pair_is_matched_once(clients):
    a, b = clients.honest[:2]
    match = WeightMatching()
    assert match(clients.spec, reference=a, candidate=b) is match(clients.spec, reference=a, candidate=dict(b))
    assert match(clients.spec, reference=b, candidate=a) is not match(clients.spec, reference=a, candidate=b)


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_trained_clients_are_those_of_the_seed(alpha):
    one, same, other = (train_clients(2, 1, 8, 60, 3, seed, alpha) for seed in (0, 0, 1))
    key = "layers.0.weight"
    assert torch.equal(one.honest[0][key], same.honest[0][key])
    assert not torch.equal(one.honest[0][key], other.honest[0][key])
    kinds = len(one.examples[1].unique())
    assert kinds <= 7 if alpha else kinds == 10


@pytest.mark.parametrize(
    ("found", "tried", "low", "high"),
    [(0, 20, 0.0, 0.1611), (10, 20, 0.2993, 0.7007), (20, 20, 0.8389, 1.0), (1, 10, 0.0179, 0.4042)],
)
def test_wilsons_interval(found, tried, low, high):
    assert wilson(found, tried) == pytest.approx((low, high), abs=1e-4)


def test_students_interval():
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert mean_interval([1.0]) == (float("-inf"), float("inf"))


def made_up(ours, seeds=5):
    """All strategies at 95 %, but for Krum behind our alignment."""
    usual = dict.fromkeys(INNER, 0.95)
    cells = {}
    for attack, lost in ((NONE, 0.0), ("an attack", ours)):
        for alignment in ALIGNMENTS:
            accuracy = {**usual, "Krum": 0.95 - lost} if alignment == US else usual
            cells["iid, 20 %", attack, alignment] = {seed: Cell(accuracy, caught=2) for seed in range(seeds)}
    return cells


def test_verdicts_name_the_strategy_that_is_farthest_behind():
    bad, good = verdicts(made_up(0.04)), verdicts(made_up(0.005))
    assert "**no: +4.0** (+4.0 to +4.0) Krum" in next(line for line in bad if "an attack" in line)
    assert "yes: +0.5 Krum" in next(line for line in good if "an attack" in line)
    assert "iid, 20 %: 1 of 2" in bad[-1]
    assert "iid, 20 %: 2 of 2" in good[-1]
    assert behind(made_up(0.04), "iid, 20 %", "an attack", "Krum") == pytest.approx([4.0] * 5)


def test_tables_say_how_many_runs_lose_much():
    cells = made_up(0.04)
    row = next(line for line in risks(cells, "iid, 20 %") if "an attack" in line)
    assert row.startswith("| an attack | 2.0 | 0.0 | 0 (0 to 43), 95.0 |")
    assert "| 100 (57 to 100), 91.0 |" in row
    assert any("91.0 / 95.0 / 95.0" in line for line in means(cells, "iid, 20 %"))
    assert "### iid, 20 %" in section(cells)
    del cells["iid, 20 %", "an attack", NOT]
    assert any("91.0 / 95.0 / -" in line for line in means(cells, "iid, 20 %"))


def test_what_costs_little_is_only_named():
    *_, row, _, rest = notable(made_up(0.04), "iid, 20 %")
    assert row.startswith("| an attack |")
    assert "| 91.0 / 95.0; 100 (57 to 100), 91.0 |" in row
    assert rest == "The others: none."
    *_, row, _, rest = notable(made_up(0.005), "iid, 20 %")
    assert row.startswith("| none |")
    assert rest == "The others: an attack."


def test_a_round_that_is_given_up_counts_as_none():
    cells = made_up(0.0)
    cells["iid, 20 %", "an attack", US] = {0: Cell({**dict.fromkeys(INNER, 0.95), "Bulyan": None})}
    assert behind(cells, "iid, 20 %", "an attack", "Bulyan") == [95.0]


def test_positions_are_those_of_what_was_sent(clients, setting):
    federation = Federation(clients, setting, 0)
    sent, order = federation.mixed([*clients.honest, *clients.dishonest])
    assert sorted(order) == list(range(HONEST + ATTACKERS))
    assert order != sorted(order)
    assert positions(handed_on(clients, sent)) <= set(range(len(sent)))
    assert head_turned(clients, turned(clients.mean))
    assert not head_turned(clients, clients.mean)
