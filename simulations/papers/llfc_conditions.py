"""Experiments of LLFC (Zhou et al., NeurIPS 2023) on why features connect: commutativity, weak additivity, low rank."""

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

from fedrebasin.analysis import commutativity, compare_matchers, weak_additivity, weight_spectra

from .lab import Lab
from .llfc import PAPER, SMALL
from .pairs import independent_pair, spawned_pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Figure, Result, at, below, chart, falls, figures, times


@experiment(
    "llfc-commutativity",
    "LLFC, Figures 16 to 19 and A.3",
    "What weight matching does to both factors of the commutativity condition",
    SMALL,
    PAPER,
)
def commuting(lab: Lab, setting: Setting) -> Result:
    """Dist_com, Dist_W, Dist_H and weak additivity, before and after weight matching; the A.3 objective."""
    columns: dict[str, list[float]] = defaultdict(list)
    matchers: dict[str, list[float]] = defaultdict(list)
    for seed in setting.seeds:
        p, spawned = independent_pair(lab, setting, seed), spawned_pair(lab, setting, seed)
        for name, found in compare_matchers(p.model, p.spec, p.a, p.b, p.test, p.matchers()).items():
            matchers[name].append(found.value / 1e3)
        for name, pair, b in (
            ("as trained", p, p.b),
            ("weight matching", p, p.aligned),
            ("spawning", spawned, spawned.b),
        ):
            layers = commutativity(pair.model, pair.a, b, pair.test)[1:]
            additivity = weak_additivity(pair.model, pair.a, b, pair.test)
            columns[f"Dist_com, {name}"].append(fmean(layer.dist_com for layer in layers))
            columns[f"Dist_W, {name}"].append(fmean(layer.dist_w for layer in layers))
            columns[f"Dist_H, {name}"].append(fmean(layer.dist_h for layer in layers))
            columns[f"weak additivity (cosine), {name}"].append(fmean(layer.cosine.mean for layer in additivity))
    return Result(
        figures=(*figures("{}", columns), *figures("A.3 objective, {}", matchers, "thousands")),
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
                    times(0.5, columns[f"{key}, spawning"]),
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
    rows: dict[str, list[list[float]]] = defaultdict(list)
    epochs: list[int] = []
    for seed in setting.seeds:
        for label, decay in (("weight decay", setting.recipe.weight_decay), ("none", 0.0)):
            recipe = replace(setting.of(seed=seed), weight_decay=decay)
            states = lab.checkpoints(recipe)
            epochs = list(states)
            model = lab.model(recipe)
            hidden = [list(weight_spectra(model, state).values())[1:-1] for state in states.values()]
            rows[label].append([fmean(s.stable_rank for s in found) for found in hidden])
    lines = {"weight decay": rows["weight decay"], "weight decay none": rows["none"]}
    return Result(
        figures=tuple(
            Figure(f"stable rank of hidden weights, epoch {epoch}, {label}", tuple(at(found, i)))
            for label, found in rows.items()
            for i, epoch in enumerate(epochs)
        ),
        claims=(
            falls("training lowers the stable rank", rows["weight decay"]),
            below("weight decay lowers it further", at(rows["weight decay"], -1), at(rows["none"], -1)),
        ),
        charts=(chart("stable rank of hidden weights", "epoch", "stable rank", epochs, lines),),
    )
