"""Experiments of LEWC that rule other explanations out: weight decay, flatness, order of units, temperature."""

from collections import defaultdict
from dataclasses import replace
from statistics import fmean
from typing import Literal

import torch

from fedrebasin.analysis import feature_connectivity, flatness, interpolate, reciprocal_orthogonality, weight_spectra

from .lab import Lab
from .lewc import PAPER
from .pairs import pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import (
    Chart,
    Figure,
    Line,
    Result,
    at,
    below,
    by_name,
    chart,
    curve,
    falls,
    falls_at_every_step,
    figures,
    figures_along,
    rises,
)

DECAYS = (0.0, 1e-4, 1e-3, 3e-3)
RANDOM: dict[str, Literal["tensor", "model"]] = {
    "random, tensor by tensor": "tensor",
    "random, the whole model": "model",
}
WIDEST = Setting(recipe=Recipe(), widths=(512,), points=5)
#: What the paper says of VGG-11 at weight decays of 1e-4 and 3e-3.
IN_WORDS = {
    "LEWC cosine, last layer": {1e-4: "low", 3e-3: "high"},
    "reciprocal norm ratio": {1e-4: "high", 3e-3: "low"},
    "stable rank of hidden weights": {1e-4: "high", 3e-3: "low"},
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

    def measure(seed: int, decay: float) -> dict[str, float]:
        p = pair(lab, replace(setting, recipe=replace(setting.recipe, weight_decay=decay)), seed)
        ratios = reciprocal_orthogonality(p.model, p.a, p.b, p.test)[1:]
        hidden = list(weight_spectra(p.model, p.a).values())[1:-1]
        return {
            "naive calibrated barrier (nats)": p.barrier(p.b, setting.points, calibrated=True).value,
            "LEWC cosine, last layer": feature_connectivity(p.model, p.a, p.b, p.test)[-1].cosine.mean,
            "reciprocal norm ratio": fmean(found.ratio.mean for found in ratios),
            "stable rank of hidden weights": fmean(found.stable_rank for found in hidden),
        }

    rows = by_name(by_name(measure(seed, decay) for decay in DECAYS) for seed in setting.seeds)
    barrier, cosine, ratio, rank = rows.values()
    axis = f"weight decay, from {DECAYS[0]:g} to {DECAYS[-1]:g}"
    return Result(
        figures=tuple(
            replace(figure, paper=IN_WORDS.get(name, {}).get(decay, ""))
            for name, found in rows.items()
            for decay, figure in zip(DECAYS, figures_along("{}, weight decay {:g}", {name: found}, DECAYS), strict=True)
        ),
        claims=(
            falls("stronger decay lowers the stable rank", rank),
            falls("stronger decay lowers the reciprocal norm ratio", ratio),
            rises("stronger decay raises LEWC's cosine", cosine),
            falls("stronger decay lowers the naive calibrated barrier", barrier),
        ),
        charts=tuple(chart(name, axis, name, range(len(DECAYS)), {"measured": found}) for name, found in rows.items()),
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
    loss: dict[str, list[list[float]]] = defaultdict(list)
    accuracy: dict[str, list[list[float]]] = defaultdict(list)
    for seed in setting.seeds:
        p = pair(lab, setting, seed)
        generator = torch.Generator().manual_seed(seed)
        states = [interpolate(p.a, p.b, lam) for lam in lams]
        merged = [p.score(state, p.temperature(state)) for state in states]
        loss["towards B"].append([score.loss for score in merged])
        accuracy["towards B"].append([100 * score.accuracy for score in merged])
        for way, by in RANDOM.items():
            found = [flatness(p.model, p.a, p.b, p.test, lam, 3, generator=generator, by=by) for lam in lams]
            loss[way].append([fmean(each.losses) for each in found])
            accuracy[way].append([100 * fmean(each.accuracies) for each in found])
    named = (("calibrated loss", loss, "nats"), ("accuracy", accuracy, "%"))
    return Result(
        figures=tuple(
            Figure(f"{what}, {way}, lam {lams[i]:g}", tuple(at(rows, i)), "", unit)
            for what, found, unit in named
            for way, rows in found.items()
            for i in (1, 3)
        ),
        claims=tuple(
            below(
                f"{way}: at {'half' if lams[i] == 0.5 else 'all'} of the way the loss is higher than towards B",
                at(loss["towards B"], i),
                at(loss[way], i),
                "nats",
                "most random directions are such that features of low rank do not touch them; towards B and at random",
            )
            for way in RANDOM
            for i in (1, 3)
        ),
        charts=tuple(
            chart(what, "distance / way to B", f"{what} ({unit})", lams, found) for what, found, unit in named
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
        p = pair(lab, setting, seed)
        own.append(p.barrier(p.b, setting.points, calibrated=True).value)
        shuffled.append(p.shuffled_barrier(setting.points, seed))
    return Result(
        figures=figures("naive calibrated barrier, {}", {"as trained": own, "randomly permuted": shuffled}, "nats"),
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
        p = pair(lab, setting, seed)
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
            Figure("norm of the merged logits over the models'", tuple(at(norms, -1))),
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
