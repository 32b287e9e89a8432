"""Experiments of LEWC that rule other explanations out: weight decay, flatness, order of units, temperature."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Literal

import torch

from fedrebasin.analysis import (
    feature_connectivity,
    flatness,
    interpolate,
    random_permutation_barriers,
    reciprocal_orthogonality,
    weight_spectra,
)

from .lab import Lab
from .lewc import PAPER
from .pairs import pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Figure, Line, Result, below, curve, falls, falls_at_every_step, rises

BY: tuple[Literal["tensor", "model"], ...] = ("tensor", "model")
WIDEST = Setting(recipe=Recipe(), widths=(512,), points=5)
#: What the paper says of VGG-11 at weight decays of 1e-4 and 3e-3.
IN_WORDS = {
    "cosine": {1e-4: "low", 3e-3: "high"},
    "ratio": {1e-4: "high", 3e-3: "low"},
    "rank": {1e-4: "high", 3e-3: "low"},
}


@experiment(
    "lewc-weight-decay",
    "LEWC, Figures 9, 10 and 23 (section 5.4 and F.9)",
    "Weight decay decides whether wide models merge as they are",
    Setting(recipe=Recipe(), widths=(512,), points=3),
    replace(PAPER, widths=(8192,)),
)
def weight_decay(lab: Lab, setting: Setting) -> Result:
    """Calibrated naive barrier, LEWC's cosine and ratio, and stable rank, by weight decay."""
    decays = (0.0, 1e-4, 1e-3, 3e-3)
    rows: dict[str, list[list[float]]] = {}
    for seed in setting.seeds:
        cells = []
        for decay in decays:
            p = pair(lab, replace(setting, recipe=replace(setting.recipe, weight_decay=decay)), seed=seed)
            cells.append(
                (
                    p.barrier(p.b, setting.points, calibrated=True).value,
                    feature_connectivity(p.model, p.a, p.b, p.test)[-1].cosine.mean,
                    fmean(found.ratio.mean for found in reciprocal_orthogonality(p.model, p.a, p.b, p.test)[1:]),
                    fmean(found.stable_rank for found in list(weight_spectra(p.model, p.a).values())[1:-1]),
                )
            )
        for name, column in zip(("barrier", "cosine", "ratio", "rank"), zip(*cells, strict=True), strict=True):
            rows.setdefault(name, []).append(list(column))
    labels = {
        "barrier": "naive calibrated barrier (nats)",
        "cosine": "LEWC cosine, last layer",
        "ratio": "reciprocal norm ratio",
        "rank": "stable rank of hidden weights",
    }
    ticks = range(len(decays))
    return Result(
        figures=tuple(
            Figure(
                f"{labels[name]}, weight decay {decay:g}",
                tuple(row[i] for row in found),
                IN_WORDS.get(name, {}).get(decay, ""),
            )
            for name, found in rows.items()
            for i, decay in enumerate(decays)
        ),
        claims=(
            falls("stronger decay lowers the stable rank", rows["rank"]),
            falls("stronger decay lowers the reciprocal norm ratio", rows["ratio"]),
            rises("stronger decay raises LEWC's cosine", rows["cosine"]),
            falls("stronger decay lowers the naive calibrated barrier", rows["barrier"]),
        ),
        charts=tuple(
            Chart(
                labels[name],
                f"weight decay, from {decays[0]:g} to {decays[-1]:g}",
                labels[name],
                (curve(name, ticks, found),),
            )
            for name, found in rows.items()
        ),
        notes="An L2 term of Adam. Section 5.4 and F.9 disagree on its direction: this is what is found.",
    )


@experiment(
    "lewc-flatness",
    "LEWC, Appendix D, Figures 12 to 14",
    "Flatness does not explain it: random steps as long as the way to the other model are worse",
    WIDEST,
    replace(PAPER, widths=(8192,)),
)
def flat(lab: Lab, setting: Setting) -> Result:
    """Calibrated loss and accuracy at equal distances: towards the other model, and in random directions."""
    lams = (0.25, 0.5, 0.75, 1.0)
    ways = ("towards B", "random, tensor by tensor", "random, the whole model")
    loss: dict[str, list[list[float]]] = {way: [] for way in ways}
    accuracy: dict[str, list[list[float]]] = {way: [] for way in ways}
    for seed in setting.seeds:
        p = pair(lab, setting, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        merged = [p.score(interpolate(p.a, p.b, lam), calibrated=True) for lam in lams]
        rows = {ways[0]: [(score.loss, score.accuracy) for score in merged]}
        for way, by in zip(ways[1:], BY, strict=True):
            found = [flatness(p.model, p.a, p.b, p.test, lam, 3, generator=generator, by=by) for lam in lams]
            rows[way] = [(fmean(each.losses), fmean(each.accuracies)) for each in found]
        for way, measured in rows.items():
            loss[way].append([value for value, _ in measured])
            accuracy[way].append([100 * value for _, value in measured])
    named = (("calibrated loss", loss, "nats"), ("accuracy", accuracy, "%"))
    return Result(
        figures=tuple(
            Figure(f"{what}, {way}, lam {lams[i]:g}", tuple(row[i] for row in found[way]), "", unit)
            for what, found, unit in named
            for way in ways
            for i in (1, 3)
        ),
        claims=tuple(
            below(
                f"{way}: at {'half' if lams[i] == 0.5 else 'all'} of the way the loss is higher than towards B",
                [row[i] for row in loss[ways[0]]],
                [row[i] for row in loss[way]],
                "nats",
                "most random directions are such that features of low rank do not touch them; towards B and at random",
            )
            for way in ways[1:]
            for i in (1, 3)
        ),
        charts=tuple(
            Chart(what, "distance / way to B", f"{what} ({unit})", tuple(curve(way, lams, found[way]) for way in ways))
            for what, found, unit in named
        ),
    )


@experiment(
    "lewc-random-permutations",
    "LEWC, F.4",
    "For wide models the order of units does not matter: random permutations change little",
    WIDEST,
    replace(PAPER, widths=(8192,)),
)
def random_permutations(lab: Lab, setting: Setting) -> Result:
    """The naive calibrated barrier as trained and under random permutations."""
    own, shuffled = [], []
    for seed in setting.seeds:
        p = pair(lab, setting, seed=seed)
        own.append(p.barrier(p.b, setting.points, calibrated=True).value)
        generator = torch.Generator().manual_seed(seed)
        found = random_permutation_barriers(
            p.model, p.spec, p.a, p.b, p.test, 3, setting.points, calibrate=p.held_out, generator=generator
        )
        shuffled.append(fmean(barrier.value for barrier in found))
    return Result(
        figures=(
            Figure("naive calibrated barrier, as trained", tuple(own), "", "nats"),
            Figure("naive calibrated barrier, randomly permuted", tuple(shuffled), "", "nats"),
        ),
        claims=(
            below(
                "a random permutation changes the barrier by less than a quarter or 0.05 nats",
                [abs(x - y) for x, y in zip(own, shuffled, strict=True)],
                [max(0.05, 0.25 * x) for x in own],
                "nats",
            ),
        ),
    )


@experiment(
    "lewc-temperature",
    "LEWC, Figures 19 and 20",
    "Logits shrink along the path, and the inverse temperature makes up for it",
    replace(WIDEST, points=11),
    replace(PAPER, widths=(8192,)),
)
def temperature(lab: Lab, setting: Setting) -> Result:
    """Fitted beta along the path and the norms of the features by layer."""
    betas: list[list[float]] = []
    norms: list[list[float]] = []
    lams: tuple[float, ...] = ()
    for seed in setting.seeds:
        p = pair(lab, setting, seed=seed)
        barrier = p.barrier(p.b, setting.points, calibrated=True)
        lams = barrier.lams
        betas.append([1 / beta for beta in barrier.betas])
        layers = feature_connectivity(p.model, p.a, p.b, p.test)
        norms.append([layer.norm.mean / fmean(norm.mean for norm in layer.norms) for layer in layers])
    depth = range(1, len(norms[0]) + 1)
    middle = len(lams) // 2
    halves = Line("2^(1 - l) / sqrt 2", tuple(map(float, depth)), tuple(2.0 ** (1 - d) / 2**0.5 for d in depth))
    return Result(
        figures=(
            Figure(
                "temperature 1 / beta at the middle over that at the ends",
                tuple(b[middle] / ((b[0] + b[-1]) / 2) for b in betas),
            ),
            Figure("norm of the merged logits over the models'", tuple(row[-1] for row in norms)),
        ),
        claims=(
            below(
                "the temperature is lowest inside of the path",
                [min(row) for row in betas],
                [min(row[0], row[-1]) for row in betas],
            ),
            falls_at_every_step("norms decay with depth", norms),
        ),
        charts=(
            Chart("temperature along the path", "lam", "1 / beta", (curve("naive path", lams, betas),)),
            Chart("decay of norms", "layer", "merged over own norm", (curve("measured", depth, norms), halves)),
        ),
    )
