"""Experiments of LLFC (Zhou et al., NeurIPS 2023): features of merged models, stitching, commutativity, spectra."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from fedrebasin import (
    State,
    commutativity,
    compare_matchers,
    evaluate,
    feature_connectivity,
    lemma_1,
    stitching,
    weak_additivity,
    weight_spectra,
)

from .lab import Lab
from .pairs import Pair, pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Result, curve

SMALL = Setting(recipe=Recipe(weight_decay=0.0, spawn=5), widths=(256,))
PAPER = Setting(recipe=Recipe("mnist", width=512, weight_decay=0.0, epochs=100, spawn=5), widths=(512,))


def _spawned(lab: Lab, setting: Setting, seed: int) -> Pair:
    """Two children of one training, apart after ``spawn`` epochs."""
    recipe = setting.of(seed=seed)
    return Pair(lab, recipe, lab.child(recipe, 0), lab.child(recipe, 1))


def _independent(lab: Lab, setting: Setting, seed: int) -> Pair:
    return pair(lab, replace(setting, recipe=replace(setting.recipe, spawn=0)), seed=seed)


@experiment(
    "llfc-features",
    "LLFC, Figures 8 to 15",
    "Features of every layer are linearly connected where the weights are: by spawning, and by permutation",
    SMALL,
    PAPER,
)
def features(lab: Lab, setting: Setting) -> Result:
    """1 - cosine by layer, for spawned, permuted and unpermuted pairs, with each pair's own baseline."""
    rows: dict[str, list[list[float]]] = {}
    coefficients: dict[str, list[float]] = {}
    lemma, names = [], []
    for seed in setting.seeds:
        spawned, strangers = _spawned(lab, setting, seed), _independent(lab, setting, seed)
        pairs = {
            "spawning": (spawned, spawned.b),
            "permutation": (strangers, strangers.aligned),
            "neither": (strangers, strangers.b),
        }
        for name, (p, b) in pairs.items():
            layers = feature_connectivity(p.model, p.a, b, p.test)
            names = [layer.layer for layer in layers]
            rows.setdefault(name, []).append([1 - layer.cosine.mean for layer in layers])
            rows.setdefault(f"{name}, baseline", []).append([1 - layer.baseline.mean for layer in layers])
            coefficients.setdefault(name, []).append(fmean(layer.coefficient.mean for layer in layers))
        lemma.append(all(bound.holds for bound in lemma_1(spawned.model, spawned.a, spawned.b, spawned.test)))
    depth = range(1, len(names) + 1)
    return Result(
        figures=(
            *(
                Figure(f"1 - cosine, mean over layers, {name}", tuple(fmean(row) for row in found))
                for name, found in rows.items()
            ),
            *(
                Figure(f"coefficient, mean over layers, {name}", tuple(found), "about 1" if name != "neither" else "")
                for name, found in coefficients.items()
            ),
        ),
        claims=(
            *(
                Claim(
                    f"{name}: merged features follow the linear law in every layer far better than A follows B",
                    tuple(
                        all(x < 0.5 * y for x, y in zip(row, base, strict=True))
                        for row, base in zip(rows[name], rows[f"{name}, baseline"], strict=True)
                    ),
                )
                for name in ("spawning", "permutation")
            ),
            Claim(
                "without permutation the law is broken by more than with it, in every layer after the first",
                tuple(
                    all(x > y for x, y in zip(row[1:], other[1:], strict=True))
                    for row, other in zip(rows["neither"], rows["permutation"], strict=True)
                ),
            ),
            Claim("Lemma 1: the halfway model's error is at most twice the larger one", tuple(lemma)),
        ),
        charts=(
            Chart(
                "how far features are from the linear law",
                "layer",
                "1 - cosine at lam = 1/2",
                tuple(curve(name, depth, found) for name, found in rows.items()),
            ),
        ),
    )


@experiment(
    "llfc-stitching",
    "LLFC, Tables 1 to 3",
    "Lower layers of one model under upper layers of another",
    SMALL,
    PAPER,
)
def stitched(lab: Lab, setting: Setting) -> Result:
    """Error after stitching at every layer, spawned, permuted and unpermuted."""
    rows: dict[str, list[list[float]]] = {}
    own = []
    for seed in setting.seeds:
        spawned, strangers = _spawned(lab, setting, seed), _independent(lab, setting, seed)
        own.append(1 - evaluate(strangers.model, strangers.b, strangers.test).accuracy)
        for name, p, b in (
            ("spawning", spawned, spawned.b),
            ("permutation", strangers, strangers.aligned),
            ("neither", strangers, strangers.b),
        ):
            scores = list(stitching(p.model, p.a, b, p.test).values())[:-1]
            rows.setdefault(name, []).append([100 * (1 - score.accuracy) for score in scores])
    depth = range(1, len(rows["neither"][0]) + 1)
    return Result(
        figures=(
            *(
                Figure(f"error after stitching, mean over layers, {name}", tuple(fmean(row) for row in found), "", "%")
                for name, found in rows.items()
            ),
            Figure("error of B itself", tuple(100 * error for error in own), "", "%"),
        ),
        claims=(
            Claim(
                "stitching permuted models costs little (below 5 % more errors), stitching strangers ruins them",
                tuple(
                    fmean(good) < 100 * error + 5 and fmean(bad) > 30
                    for good, bad, error in zip(rows["permutation"], rows["neither"], own, strict=True)
                ),
            ),
            Claim(
                "spawned models stitch as well",
                tuple(fmean(good) < 100 * error + 5 for good, error in zip(rows["spawning"], own, strict=True)),
            ),
        ),
        charts=(
            Chart(
                "error after stitching",
                "after layer",
                "test error (%)",
                tuple(curve(name, depth, found) for name, found in rows.items()),
            ),
        ),
    )


@experiment(
    "llfc-commutativity",
    "LLFC, Figures 16 to 19 and A.3",
    "What weight matching does to both factors of the commutativity condition",
    SMALL,
    PAPER,
)
def commuting(lab: Lab, setting: Setting) -> Result:
    """Dist_com, Dist_W, Dist_H and weak additivity, before and after weight matching; the A.3 objective."""
    columns: dict[str, list[float]] = {}
    matchers: dict[str, list[float]] = {}
    for seed in setting.seeds:
        p = _independent(lab, setting, seed)
        for name, found in compare_matchers(p.model, p.spec, p.a, p.b, p.test, p.matchers()).items():
            matchers.setdefault(name, []).append(found.value / 1e3)
        spawned = _spawned(lab, setting, seed)
        states: tuple[tuple[str, Pair, State], ...] = (
            ("as trained", p, p.b),
            ("weight matching", p, p.aligned),
            ("spawning", spawned, spawned.b),
        )
        for name, at, b in states:
            layers = commutativity(at.model, at.a, b, at.test)[1:]
            additivity = weak_additivity(at.model, at.a, b, at.test)
            values = {
                "Dist_com": fmean(layer.dist_com for layer in layers),
                "Dist_W": fmean(layer.dist_w for layer in layers),
                "Dist_H": fmean(layer.dist_h for layer in layers),
                "weak additivity (cosine)": fmean(each.cosine.mean for each in additivity),
            }
            for key, value in values.items():
                columns.setdefault(f"{key}, {name}", []).append(value)
    holds = {key: columns[f"{key}, weight matching"] for key in ("Dist_com", "Dist_W", "Dist_H")}
    return Result(
        figures=(
            *(Figure(name, tuple(values)) for name, values in columns.items()),
            *(Figure(f"A.3 objective, {name}", tuple(values), "", "thousands") for name, values in matchers.items()),
        ),
        claims=(
            Claim(
                "weight matching lowers both factors and the condition itself",
                tuple(
                    all(holds[key][i] < columns[f"{key}, as trained"][i] for key in holds)
                    for i in range(len(setting.seeds))
                ),
            ),
            Claim(
                "every matcher lowers the A.3 objective",
                tuple(
                    all(values[i] < matchers["none"][i] for name, values in matchers.items() if name != "none")
                    for i in range(len(setting.seeds))
                ),
            ),
            Claim(
                "Dist_com is far below both Dist_W and Dist_H for spawned models",
                tuple(
                    com < 0.5 * min(w, h)
                    for com, w, h in zip(
                        columns["Dist_com, spawning"],
                        columns["Dist_W, spawning"],
                        columns["Dist_H, spawning"],
                        strict=True,
                    )
                ),
                "the MLP's two factors are already small after matching; the product is compared with each of them",
            ),
        ),
        notes="Means over the layers after the first, whose features are the data.",
    )


@experiment(
    "llfc-spectrum",
    "LLFC, Figures 20 to 22",
    "Stable rank of weights over training and with weight decay",
    Setting(recipe=Recipe(keep=(0, 5, 20)), widths=(256,)),
    Setting(recipe=Recipe("mnist", width=512, epochs=100, keep=(0, 10, 50)), widths=(512,)),
)
def spectrum(lab: Lab, setting: Setting) -> Result:
    """The mean stable rank of the hidden layers at each kept epoch, with and without weight decay."""
    rows: dict[str, list[list[float]]] = {}
    epochs: list[int] = []
    for seed in setting.seeds:
        for label, decay in (("weight decay", setting.recipe.weight_decay), ("none", 0.0)):
            recipe = replace(setting.of(seed=seed), weight_decay=decay)
            states = lab.checkpoints(recipe)
            epochs = list(states)
            model = lab.model(recipe)
            hidden = [list(weight_spectra(model, state).values())[1:-1] for state in states.values()]
            rows.setdefault(label, []).append([fmean(s.stable_rank for s in found) for found in hidden])
    return Result(
        figures=tuple(
            Figure(f"stable rank of hidden weights, epoch {epoch}, {label}", tuple(row[i] for row in found))
            for label, found in rows.items()
            for i, epoch in enumerate(epochs)
        ),
        claims=(
            Claim("training lowers the stable rank", tuple(row[-1] < row[0] for row in rows["weight decay"])),
            Claim(
                "weight decay lowers it further",
                tuple(x[-1] < y[-1] for x, y in zip(rows["weight decay"], rows["none"], strict=True)),
            ),
        ),
        charts=(
            Chart(
                "stable rank of hidden weights",
                "epoch",
                "stable rank",
                tuple(
                    curve(f"weight decay {label}" if label == "none" else label, epochs, rows[label]) for label in rows
                ),
            ),
        ),
    )
