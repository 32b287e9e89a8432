"""Experiments of LLFC (Zhou et al., NeurIPS 2023) on why features connect: commutativity, weak additivity, low rank."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from fedrebasin.analysis import commutativity, compare_matchers, weak_additivity, weight_spectra
from fedrebasin.state import State

from .lab import Lab
from .llfc import PAPER, SMALL
from .pairs import Pair, independent_pair, spawned_pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Figure, Result, below, curve, falls


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
        p = independent_pair(lab, setting, seed)
        for name, found in compare_matchers(p.model, p.spec, p.a, p.b, p.test, p.matchers()).items():
            matchers.setdefault(name, []).append(found.value / 1e3)
        spawned = spawned_pair(lab, setting, seed)
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
    return Result(
        figures=(
            *(Figure(name, tuple(values)) for name, values in columns.items()),
            *(Figure(f"A.3 objective, {name}", tuple(values), "", "thousands") for name, values in matchers.items()),
        ),
        claims=(
            *(
                below(
                    f"weight matching lowers {key}", columns[f"{key}, weight matching"], columns[f"{key}, as trained"]
                )
                for key in ("Dist_com", "Dist_W", "Dist_H")
            ),
            *(
                below(f"{name} lowers the A.3 objective", values, matchers["none"], "thousands")
                for name, values in matchers.items()
                if name != "none"
            ),
            *(
                below(
                    f"Dist_com is below half of {key} for spawned models",
                    columns["Dist_com, spawning"],
                    [0.5 * value for value in columns[f"{key}, spawning"]],
                )
                for key in ("Dist_W", "Dist_H")
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
            falls("training lowers the stable rank", rows["weight decay"]),
            below(
                "weight decay lowers it further",
                [row[-1] for row in rows["weight decay"]],
                [row[-1] for row in rows["none"]],
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
