"""The experiments: models are trained once, results say what holds, every experiment runs on tiny networks."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from fedrebasin.simulations.config import DATASETS
from fedrebasin.simulations.papers.lab import Lab
from fedrebasin.simulations.papers.plane import barycentric
from fedrebasin.simulations.papers.quasi_newton import LBFGS
from fedrebasin.simulations.papers.recipe import Recipe
from fedrebasin.simulations.papers.reliability import calibration_error, reliability_chart
from fedrebasin.simulations.papers.result import (
    Chart,
    Claim,
    Figure,
    Line,
    Plane,
    Record,
    Result,
    below,
    curve,
    falls,
    falls_at_every_step,
    rises,
)

from fedrebasin import DataError, RebasinError, evaluate
from fedrebasin.analysis import Landscape
from fedrebasin.models import MODELS
from fedrebasin.simulations import EXPERIMENTS, draw, reproduce

TINY = Recipe(width=8, epochs=2, examples=200)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_recipe_gives_the_same_model_from_training_and_from_the_disk(lab, tmp_path):
    recipe = replace(TINY, keep=(0, 1))
    first = lab.checkpoints(recipe)
    epochs = []
    again = Lab(tmp_path, progress=lambda who, done, total: epochs.append(done)).checkpoints(recipe)
    assert list(first) == [0, 1, 2]
    assert all(equal(first[epoch], again[epoch]) for epoch in first)
    assert epochs == []
    assert equal(lab.trained(TINY), first[2])
    assert not equal(lab.trained(replace(TINY, seed=1)), first[2])


def test_children_share_their_beginning_and_differ_at_the_end(lab):
    recipe = replace(TINY, spawn=1, epochs=2)
    assert not equal(lab.child(recipe, 0), lab.child(recipe, 1))
    assert equal(lab.child(recipe, 0), lab.child(recipe, 0))


def test_biased_halves_are_disjoint_and_complete(lab):
    labels = lab.data("digits").train_labels
    first, second = (replace(TINY, examples=0, part=part).part_of(labels) for part in ("first", "second"))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    low = (labels[first] < 5).double().mean()
    assert 0.1 < low < 0.3


def test_random_halves_follow_from_the_seed(lab):
    labels = lab.data("digits").train_labels
    parts = [replace(TINY, examples=0, part="half", seed=seed).part_of(labels) for seed in (0, 0, 1)]
    assert all(len(set(part.tolist())) == len(labels) // 2 for part in parts)
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])
    assert abs(len(set(parts[0].tolist()) & set(parts[2].tolist())) / len(labels) - 0.25) < 0.05


def test_curvature_trains_further_than_as_many_gradient_steps(lab):
    losses = []
    for optimizer in ("sgd", LBFGS):
        recipe = replace(TINY, optimizer=optimizer, epochs=3, batch_size=200)
        batches = lab.training_batches(recipe)
        losses.append(evaluate(lab.model(recipe), lab.trained(recipe), batches).loss)
    assert losses[1] < 0.2 * losses[0]


def test_reliability_curves_leave_empty_bins_out():
    sure = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    chart = reliability_chart("", {"sure": [(sure, torch.tensor([0, 0, 1, 1]))], "none": []})
    diagonal, line = chart.lines
    assert (diagonal.x, diagonal.y) == ((0, 1), (0, 1))
    assert (line.label, line.x, line.y) == ("sure", (pytest.approx(1, abs=1e-3),), (0.75,))
    assert calibration_error((sure, torch.tensor([0, 0, 1, 1]))) == pytest.approx(25, abs=0.1)


def test_shares_of_three_models_are_barycentric():
    models = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    grid = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 3.0])
    shares = barycentric(Landscape(*grid, torch.zeros(2, 3), torch.zeros(2, 3), models))
    assert torch.allclose(shares.sum(-1), torch.ones(2, 3))
    y, x = torch.meshgrid(grid[1], grid[0], indexing="ij")
    assert torch.allclose(shares.float() @ models, torch.stack([x, y], -1))
    corners = (shares[0, 0], shares[0, 2], shares[1, 1])
    assert torch.allclose(torch.stack(corners), torch.eye(3))


def test_planes_are_drawn_and_described(tmp_path):
    plane = Plane((0.0, 1.0), (0.0, 2.0), ((0.0, 1.0), (2.0, 7.5)), (("A", 0.0, 0.0),))
    result = Result((), (), (Chart("field", "x", "y", (), plane=plane),))
    figure = draw(Record("plane", "t", "", "small", {}, 0.0, 0.0, "", result), tmp_path)
    assert "field: from 0 to 7.5" in figure.read_text()
    assert ElementTree.fromstring(figure.read_text()).tag.endswith("svg")


def test_pruned_weights_stay_zero(lab):
    start = lab.trained(TINY)
    mask = {"layers.0.weight": (torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()}
    state = lab.retrained(TINY, start, mask)
    assert bool((state["layers.0.weight"][mask["layers.0.weight"] == 0] == 0).all())
    assert state.keys() == start.keys()
    assert not equal(state, start)


def test_a_broken_file_is_named(lab, tmp_path):
    (tmp_path / f"{TINY.digest(lab.data(TINY.dataset))}.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="delete it"):
        lab.trained(TINY)


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_sound_at_both_scales(name, scale):
    setting = getattr(EXPERIMENTS[name], scale)
    assert list(setting.widths) == sorted(setting.widths)
    assert setting.points >= 2
    assert setting.recipe.width in (0, *setting.widths)  # the widths decide
    for recipe in (setting.recipe, setting.larger or setting.recipe, *(recipe for _, recipe in setting.others)):
        assert recipe.model in MODELS
        assert recipe.dataset in DATASETS
        assert all(0 <= epoch < recipe.epochs for epoch in (recipe.spawn, *recipe.keep))
        assert recipe.optimizer == LBFGS or recipe.config(recipe.epochs).optimizer == recipe.optimizer
    # a multiplier, where the MLP has its number of units
    assert setting.recipe.model == "mlp" or max(setting.widths) <= 64


def tiny(width: float) -> float:
    """Units of an MLP, or a multiplier."""
    return round(width**0.5) if width > 4 else width / 8


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_on_tiny_networks(name, tmp_path, monkeypatch):
    chosen = EXPERIMENTS[name]
    epochs = 4 if chosen.small.recipe.keep else 2
    keep = tuple(epoch for epoch in (0, 1, 2) if epoch in chosen.small.recipe.keep) or chosen.small.recipe.keep[:1]
    recipe = replace(
        chosen.small.recipe, epochs=epochs, keep=keep, examples=200, spawn=min(1, chosen.small.recipe.spawn)
    )
    others = tuple(
        (label, replace(other, epochs=2, examples=200, width=tiny(other.width))) for label, other in chosen.small.others
    )
    widths = tuple(tiny(width) for width in chosen.small.widths[-2:])
    models = min(chosen.small.models, 4)
    small = replace(chosen.small, recipe=recipe, widths=widths, seeds=(0,), points=3, models=models, others=others)
    monkeypatch.setitem(EXPERIMENTS, name, replace(chosen, small=small))
    record = reproduce(name, tmp_path)
    assert record.result.figures
    assert record.result.claims
    for claim in record.result.claims:
        assert len(claim.holds) == 1
        assert claim.why  # should it not hold, the results say what was found instead
    content = json.loads(record.write(tmp_path).read_text())
    assert content["name"] == name
    assert content["result"]["claims"][0]["verdict"]
    figure = draw(record, tmp_path)
    assert (figure is None) == (not record.result.charts)
    if figure is not None:
        assert ElementTree.fromstring(figure.read_text()).tag.endswith("svg")


def test_verdicts():
    assert Claim("", (True, True)).verdict == "holds"
    assert Claim("", (True, False, False)).verdict == "holds in 1 of 3"
    assert Claim("", (False,)).verdict == "fails"


def test_claims_about_numbers_say_both():
    claim = below("x", [1.0, 2.0], [1.5, 2.0], "nats", "ours and theirs")
    assert (claim.holds, claim.why) == ((True, False), "ours and theirs, by seed: 1 / 1.5, 2 / 2 nats")
    rows = [[4.0, 5.0, 1.9], [4.0, 3.0, 2.0]]
    assert falls("", rows).holds == (True, True)
    assert falls("", rows, 0.5).holds == (True, False)
    assert rises("", [[1.0, 0.0, 2.0], [2.0, 3.0, 2.0]]).holds == (True, False)
    assert falls_at_every_step("", rows).holds == (False, True)
    assert falls_at_every_step("", rows, slack=1.5).holds == (True, True)


def test_means_and_deviations():
    found = Figure("", (1.0, 3.0))
    assert (found.mean, found.deviation) == (2.0, pytest.approx(2**0.5))
    line = curve("", [1, 2], [[0, 1], [2, 1]])
    assert (line.y, line.spread) == ((1, 1), (pytest.approx(2**0.5), 0))


def test_numbers_without_a_json_form_become_null(tmp_path):
    result = Result((Figure("", (float("nan"),)),), (), (Chart("", "", "", (Line("", (1.0,), (float("inf"),)),)),))
    record = Record("n", "", "", "small", {}, 0.0, 0.0, "", result)
    assert json.loads(record.write(tmp_path).read_text())["result"]["figures"][0]["values"] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "grb-wdith"}, "did you mean grb-width"),
        ({"name": "grb-width", "scale": "huge"}, "choose from small, paper"),
        ({"name": "grb-width", "seeds": -1}, "must not be negative"),
        ({"name": "grb-width", "dataset": "fashion-mnist"}, "needs data-dir"),
    ],
)
def test_wrong_options_get_one_line(options, message, tmp_path):
    with pytest.raises(RebasinError, match=message) as caught:
        reproduce(folder=tmp_path, **options)
    assert "\n" not in str(caught.value)
