"""Sums that no data can have are refused, and a multiple of sums is that much larger."""

import pytest
import torch
from torch import nn

from fedrebasin import CalibrationError, collect_sums
from fedrebasin.analysis import PathEvaluation
from fedrebasin.spec import PermutationSpec
from fedrebasin.sums import (
    ActivationCorrelation,
    BatchNormMoments,
    GramMatrices,
    HeadSums,
    LayerRegression,
    PreActivationMoments,
    TemperatureCurve,
    scaled,
    sizes_of,
)
from fedrebasin.watching import unit_places

FEATURES, HIDDEN, CLASSES, COUNT = 5, 6, 3, 40


def make_model():
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    ).eval()


def state_of(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model().state_dict()


MODEL, STATE = make_model(), state_of(0)
EXAMPLE = torch.zeros(2, FEATURES)
STATISTICS = {
    "head": HeadSums("3.weight"),
    "layer": LayerRegression("3.weight", state_of(1)),
    "gram": GramMatrices(),
    "diagonal": GramMatrices(max_features=1),
    "norm": BatchNormMoments(),
    "outputs": PreActivationMoments(("0.weight",)),
    "temperature": TemperatureCurve(),
    "correlation": ActivationCorrelation(
        unit_places(MODEL, STATE, EXAMPLE, PermutationSpec.trace(MODEL, EXAMPLE)), state_of(1)
    ),
    "path": PathEvaluation(state_of(1), 3),
}


def honest(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(COUNT, FEATURES, generator=generator), torch.arange(COUNT) % CLASSES
    return collect_sums(STATISTICS[name], MODEL, STATE, [batch])


def part_of(sums, ending):
    return next(key for key in sums if key.rpartition(".")[2] == ending)


def changed(ending, change):
    return lambda sums: {**sums, (key := part_of(sums, ending)): change(sums[key].clone())}


def put(*where, value):
    def change(tensor):
        tensor[where] = value
        return tensor

    return change


FORGED = {
    "classes beside the whole": ("head", changed("classes", lambda t: t.roll(1, 0)), "does not add up|do not add up"),
    "a class's mean too far": (
        "head",
        changed("classes", lambda t: t + 30 * torch.tensor([1.0, -1.0, 0.0]) * (torch.arange(len(t)) == 0)[:, None]),
        "within the classes",
    ),
    "a class without examples": (
        "head",
        lambda s: {
            **s,
            "classes": torch.stack(
                [s["classes"][:, 0] + s["classes"][:, 1], 0 * s["classes"][:, 1], s["classes"][:, 2]], 1
            )
            + 0.5 * torch.tensor([-1.0, 1.0, 0.0]) * (torch.arange(HIDDEN + 1) == 0)[:, None],
        },
        "without examples",
    ),
    "more labels than examples": ("head", lambda s: {**scaled(s, 1e9), "examples": s["examples"]}, "cannot come of"),
    "more features than examples": ("gram", lambda s: {**scaled(s, 1e9), "examples": s["examples"]}, "cannot come of"),
    "more on the diagonal": ("diagonal", lambda s: {**scaled(s, 1e9), "examples": s["examples"]}, "cannot come of"),
    "more inputs than examples": ("norm", lambda s: {**scaled(s, 1e9), "examples": s["examples"]}, "cannot come of"),
    "more outputs than examples": (
        "outputs",
        lambda s: {**scaled(s, 1e9), "examples": s["examples"]},
        "cannot come of",
    ),
    "more losses than examples": (
        "temperature",
        lambda s: {**scaled(s, 1e9), "examples": s["examples"]},
        "cannot come of",
    ),
    "more places than examples": (
        "correlation",
        lambda s: {**scaled(s, 1e9), "examples": s["examples"]},
        "cannot come of",
    ),
    "losses beside their slopes": ("temperature", changed("terms", put(0, slice(40, None), value=1e4)), "slopes"),
    "units without variance": ("correlation", changed("own", lambda t: t + 1e3), "negative variance"),
    "mistakes that cost nothing": (
        "path",
        lambda s: {**s, "loss": 0 * s["loss"], "correct": 0 * s["correct"]},
        "mistakes",
    ),
}


@pytest.mark.parametrize("kind", FORGED)
def test_what_no_data_can_have_is_refused(kind):
    name, forge, message = FORGED[kind]
    STATISTICS[name].validate(honest(name))
    with pytest.raises(CalibrationError, match=message):
        STATISTICS[name].validate(forge(honest(name)))


@pytest.mark.parametrize("factor", [1e-3, 7.0])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_multiple_of_sums_is_as_much_larger(name, factor):
    sums = honest(name)
    before, after = (sizes_of(STATISTICS[name], each) for each in (sums, scaled(sums, factor)))
    assert before.keys() == after.keys()
    assert before["examples"] == COUNT
    assert all(after[part] == pytest.approx(factor * size) and size > 0 for part, size in before.items())


@pytest.mark.parametrize("name", STATISTICS)
def test_whoever_multiplies_all_but_the_examples_is_larger(name):
    sums = honest(name)
    hidden = {**scaled(sums, 50.0), "examples": sums["examples"]}
    before, after = (sizes_of(STATISTICS[name], each) for each in (sums, hidden))
    # Nobody's correlations are added to another's: their size is that of the examples.
    assert name == "correlation" or max(after[part] / size for part, size in before.items()) == pytest.approx(50)
