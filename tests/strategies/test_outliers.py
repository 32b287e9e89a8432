"""What is set aside as an outlier: planted models, one network and noise of each model's own, in one order."""

import pytest
import torch
from fedrebasin.strategies.replies import agreement, margins, outliers
from fedrebasin.strategies.replies.spread import allowed, beyond

from fedrebasin import Alignment, History, Permutation, PermutationSpec, medoid
from fedrebasin.merging import AlignTo
from fedrebasin.models import MLP

WIDTH, REPLIES = 16, 15
MODEL = MLP(12, width=WIDTH, depth=2)
SPEC = PermutationSpec.trace(MODEL, torch.randn(2, 12), check=False)
SHAPES = {key: tensor.shape for key, tensor in MODEL.state_dict().items()}
LAYER = "layers.1"


def drawn(generator):
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def planted(count, seed, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    common = drawn(generator)
    return [{key: common[key] + noise * own for key, own in drawn(generator).items()} for _ in range(count)]


def mean_of(states):
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def judged(states, reference=None):
    nowhere = Permutation.identity(SPEC)
    history = History((), 0.0, True, "planted")
    cosines = [1.0 if at == reference else 0.5 for at in range(len(states))]
    return outliers(SPEC, [Alignment(nowhere, cosine, history) for cosine in cosines], states)


def shuffled(state, _):
    weight = state[f"{LAYER}.weight"]
    return {**state, f"{LAYER}.weight": weight[:, torch.arange(WIDTH).roll(1)]}


def changed(state, layer, change):
    return {key: change(tensor) if key.startswith(layer) else tensor for key, tensor in state.items()}


ONE_LAYER = {
    "shuffled": (LAYER, shuffled),
    "emptied": ("layers.2", lambda state, _: changed(state, "layers.2", torch.zeros_like)),
    "turned": ("layers.2", lambda state, _: changed(state, "layers.2", torch.neg)),
    "rescaled": ("layers.0", lambda state, _: changed(state, "layers.0", lambda tensor: 3 * tensor)),
    "of the mean": ("", lambda _, honest: mean_of(honest)),
    "of the mean, head turned": ("", lambda _, honest: changed(mean_of(honest), "layers.2", torch.neg)),
}


@pytest.mark.parametrize("attack", ONE_LAYER)
@pytest.mark.parametrize("seed", range(3))
def test_a_layer_unlike_the_others_is_named(attack, seed):
    honest = planted(REPLIES, seed, noise=0.7)
    layer, change = ONE_LAYER[attack]
    found = judged([change(honest[0], honest[1:]), *honest[1:]])
    assert list(found) == [0]
    assert layer in found[0]


@pytest.mark.parametrize("count", [5, 9, 15, 40])
def test_limits_hold_their_rate_on_normal_numbers(count):
    draws, rate = 2000, 0.02
    generator = torch.Generator().manual_seed(count)
    passed = sum(bool((beyond(torch.randn(count, generator=generator), rate) > 1).any()) for _ in range(draws))
    assert passed <= rate * draws + 3 * (rate * draws) ** 0.5
    assert passed >= rate * draws / 5  # and are no wider than they need to be


def test_more_replies_and_more_alarms_make_limits_narrower():
    assert allowed(5, 1e-3) > allowed(10, 1e-3) > allowed(20, 1e-3) > allowed(20, 1e-2)


@pytest.mark.parametrize(("count", "noise"), [(REPLIES, 1.0), (8, 0.3)])
def test_honest_models_are_set_aside_at_the_stated_rate(count, noise):
    draws = 200
    alarms = sum(bool(judged(planted(count, seed, noise))) for seed in range(draws))
    assert alarms <= 7  # of 2 that 0.01 stands for: more than 7 are drawn once in a thousand times


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_of_copies_one_stays(noise):
    states = planted(REPLIES - 3, 0)
    generator = torch.Generator().manual_seed(1)
    copies = [{key: t + noise * torch.randn(t.shape, generator=generator) for key, t in states[0].items()}] * 3
    found = judged([*states, *copies])
    together = {0, *range(len(states), REPLIES)}
    assert set(found) < together
    assert len(found) == 3


def test_models_of_clients_alike_are_no_copies():
    """Of 15 clients three, on the mean, have something in common that the others have not."""

    def in_groups(seed):
        generator = torch.Generator().manual_seed(seed)
        common, kinds = drawn(generator), [drawn(generator) for _ in range(5)]
        for kind in torch.randint(5, (REPLIES,), generator=generator).tolist():
            own = drawn(generator)
            yield {key: common[key] + 0.4 * kinds[kind][key] + own[key] for key in SHAPES}

    copies = sum("copy" in str(judged(list(in_groups(seed)))) for seed in range(20))
    assert copies <= 2  # pairs taken for as many numbers made it 9


def test_equal_models_are_no_outliers():
    assert judged(planted(1, 0) * 6) == {}


def test_never_half_of_the_models():
    honest, strangers = planted(8, 0, 0.3), [planted(1, seed)[0] for seed in range(1, 8)]
    assert len(judged([*honest, *strangers])) < REPLIES / 2


def test_the_reference_may_agree_with_all():
    states = planted(REPLIES, 0)
    states[0] = {key: 2**0.5 * tensor for key, tensor in mean_of(states[1:]).items()}  # as long as the others
    assert 0 in judged(states)
    assert 0 not in judged(states, reference=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_reference_agrees_more_than_usual_in_every_layer(seed):
    """One whose head agrees a little less was made for its other layers; alone that is within the honest spread."""
    *honest, made = planted(REPLIES, seed)
    mean, away = mean_of(honest), drawn(torch.Generator().manual_seed(100 + seed))
    for step in range(1, 100):  # until it is seen, and lies within the honest spread
        made = {
            key: made[key] + 0.05 * step * away[key] if key.startswith("layers.2") else 2**0.5 * mean[key]
            for key in SHAPES
        }
        *tests, _ = margins(agreement(SPEC, [*honest, made]), [False] * REPLIES)
        little = next(test for test in tests if "layers.2 agrees too little" in test.test)
        if little.shares[-1] > 0.3:
            break
    assert little.shares[-1] < 0.9
    last = REPLIES - 1
    assert "layers.2 agrees too little" in judged([*honest, made], reference=last)[last]
    head = {key: made[key] if key.startswith("layers.2") else planted(REPLIES, seed)[last][key] for key in SHAPES}
    assert last not in judged([*honest, head], reference=last)


def test_margins_say_who_is_beyond():
    states = planted(REPLIES, 2)
    states[3] = shuffled(states[3], ())
    tests = margins(agreement(SPEC, states), [False] * REPLIES)
    assert {at for test in tests for at in range(REPLIES) if test.shares[at] > 1} == {3}


def units_averaged(state, block):
    """Neighbouring units all alike: near to every model, and telling none of its units apart."""
    found = dict(state)
    for group in SPEC.groups.values():
        for axis in group.axes:
            tensor = found[axis.key].movedim(axis.dim, 0)
            alike = tensor.reshape(-1, block, *tensor.shape[1:]).mean(1).repeat_interleave(block, 0)
            found[axis.key] = alike.movedim(0, axis.dim)
    return found


@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize("seed", range(10))
def test_a_mean_of_units_is_no_reference(block, seed):
    honest = planted(6, seed, noise=0.5)
    generator = torch.Generator().manual_seed(seed)
    false = Permutation.random(SPEC, generator).apply(units_averaged(mean_of(honest), block))
    sent = [false, *(Permutation.random(SPEC, generator).apply(state) for state in honest)]
    assert medoid(SPEC, sent) != 0
    assert AlignTo(reference="medoid")(SPEC, sent).alignments[0].history.reason != "it is the reference"
