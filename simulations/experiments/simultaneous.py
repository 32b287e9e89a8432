"""Experiments of Simultaneous connectivity (Sharma, Kwok et al., 2024): trajectories, sets, layers, stability."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Literal

from fedrebasin import (
    State,
    WeightMatching,
    fixed_points,
    instability,
    partial_barriers,
    simultaneous_connectivity,
    strong_connectivity,
    weak_connectivity,
)

from .lab import Lab
from .pairs import pair
from .recipe import Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Result, curve

PAPER_MLP = Recipe("mnist", width=512, weight_decay=0.0, epochs=100)


Order = Literal["bottom-up", "top-down", "put-in", "leave-out"]


@experiment(
    "sim-trajectory",
    "Simultaneous connectivity, Figures 1 to 3 and 14",
    "One permutation, found at the end of training, aligns the whole trajectory",
    Setting(recipe=Recipe(weight_decay=0.0, keep=(0, 1, 2, 4, 8, 16, 30)), widths=(256,), points=5),
    Setting(recipe=replace(PAPER_MLP, keep=(0, 1, 2, 5, 10, 25, 50)), widths=(512,), points=25),
)
def trajectory(lab: Lab, setting: Setting) -> Result:
    """Barriers at every kept epoch under the permutation of every kept epoch, and fixed points with the last one."""
    by_source: dict[int, list[list[float]]] = {}
    shares: list[list[float]] = []
    at: list[int] = []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        first, second = (lab.checkpoints(setting.of(seed=seed, number=number)) for number in (0, 1))
        model, spec, test = lab.model(recipe), lab.spec(recipe), lab.test(recipe.dataset)
        at = list(first)
        found = {e: WeightMatching()(spec, reference=first[e], candidate=second[e]).permutation for e in at}
        for epoch, permutation in found.items():
            barriers = simultaneous_connectivity(
                model, list(first.values()), list(second.values()), permutation, test, setting.points
            )
            by_source.setdefault(epoch, []).append(list(barriers))
        shares.append([fixed_points(found[epoch], found[at[-1]]).share for epoch in at])
    means = {epoch: [fmean(row) for row in rows] for epoch, rows in by_source.items()}
    last = means[at[-1]]
    before = {epoch: found for epoch, found in means.items() if epoch != at[-1]}
    best = [min((found[s], epoch) for epoch, found in before.items()) for s in range(len(setting.seeds))]
    slack = 1e-3
    return Result(
        figures=tuple(
            Figure(f"mean barrier over the trajectory, permutation of epoch {epoch}", tuple(found), "", "nats")
            for epoch, found in means.items()
        ),
        claims=(
            Claim(
                "the permutation found at the end aligns the whole trajectory better than that of every time before "
                f"(within {slack:g} nats)",
                tuple(all(end <= found[s] + slack for found in before.values()) for s, end in enumerate(last)),
                "best earlier epoch by seed: "
                + ", ".join(f"{epoch} ({value:.4f} against {last[s]:.4f})" for s, (value, epoch) in enumerate(best)),
            ),
            Claim(
                "the same on the mean over the seeds",
                (all(fmean(last) <= fmean(found) for found in before.values()),),
            ),
            Claim(
                "the permutations settle: the share of units placed as at the end rises with time",
                tuple(row[-2] > row[0] for row in shares),
            ),
        ),
        charts=(
            Chart(
                "barriers along the trajectory",
                "epoch",
                "test loss barrier (nats)",
                tuple(curve(f"permutation of epoch {epoch}", at, rows) for epoch, rows in by_source.items()),
            ),
            Chart("units placed as at the end", "epoch", "share", (curve("fixed points", at, shares),)),
        ),
    )


@experiment(
    "sim-width",
    "Simultaneous connectivity, Figure 16, section 5.3 and Appendix C",
    "Weak and strong connectivity of three networks, and width",
    Setting(recipe=Recipe(weight_decay=0.0), widths=(32, 128, 512), models=3, points=5),
    Setting(recipe=PAPER_MLP, widths=(128, 512, 2048), models=3, points=25),
)
def strong(lab: Lab, setting: Setting) -> Result:
    """Barriers with pairwise permutations, direct ones, and those through a third network."""
    rows: dict[str, list[list[float]]] = {"weak": [], "strong, direct": [], "strong, through a third": []}
    for seed in setting.seeds:
        cells: dict[str, list[float]] = {name: [] for name in rows}
        for width in setting.widths:
            recipe = setting.of(width, seed)
            states = [lab.trained(setting.of(width, seed, number)) for number in range(setting.models)]
            model, spec, test = lab.model(recipe), lab.spec(recipe), lab.test(recipe.dataset)
            weak = weak_connectivity(model, spec, states, test, points=setting.points)
            found = strong_connectivity(model, spec, states, test, points=setting.points)
            cells["weak"].append(weak.mean)
            cells["strong, direct"].append(found.direct.mean)
            cells["strong, through a third"].append(found.through_third.mean)
        for name, values in cells.items():
            rows[name].append(values)
    third, weak_rows = rows["strong, through a third"], rows["weak"]
    return Result(
        figures=tuple(
            Figure(f"barrier, {name}, width {width:g}", tuple(row[i] for row in found), "", "nats")
            for name, found in rows.items()
            for i, width in enumerate(setting.widths)
        ),
        claims=(
            Claim(
                "through a third network the barrier falls with width", tuple(row[-1] < 0.5 * row[0] for row in third)
            ),
            Claim(
                "at the narrowest it is higher than with a permutation for each pair: weak is not strong connectivity",
                tuple(t[0] > w[0] for t, w in zip(third, weak_rows, strict=True)),
            ),
        ),
        charts=(
            Chart(
                "weak and strong connectivity",
                "hidden units",
                "test loss barrier (nats)",
                tuple(curve(name, setting.widths, found) for name, found in rows.items()),
                log_x=True,
            ),
        ),
    )


@experiment(
    "sim-partial",
    "Simultaneous connectivity, H.3, Figures 21 and 22",
    "Permuting only some layers",
    Setting(recipe=Recipe(weight_decay=0.0), widths=(256,), points=5),
    Setting(recipe=PAPER_MLP, widths=(512,), points=25),
)
def partial(lab: Lab, setting: Setting) -> Result:
    """Barriers under bottom-up, top-down, put-in and leave-out permutations."""
    orders: tuple[Order, ...] = ("bottom-up", "top-down", "put-in", "leave-out")
    rows: dict[str, list[list[float]]] = {}
    labels: dict[str, list[str]] = {}
    for seed in setting.seeds:
        p = pair(lab, setting, seed=seed)
        for order in orders:
            found = partial_barriers(p.model, p.alignment.permutation, p.a, p.b, p.test, order, setting.points)
            labels[order] = list(found)
            rows.setdefault(order, []).append([barrier.value for barrier in found.values()])
    up = rows["bottom-up"]
    return Result(
        figures=tuple(
            Figure(f"barrier, {order}, {label}", tuple(row[i] for row in rows[order]), "", "nats")
            for order in orders
            for i, label in enumerate(labels[order])
        ),
        claims=(
            Claim(
                "all layers' permutations together do what no single layer's does",
                tuple(full[-1] < 0.5 * min(one) for full, one in zip(up, rows["put-in"], strict=True)),
            ),
            Claim(
                "leaving out one layer's permutation raises the barrier, whichever it is",
                tuple(min(out) > full[-1] for full, out in zip(up, rows["leave-out"], strict=True)),
            ),
        ),
        charts=(
            Chart(
                "partial permutations",
                "layers permuted",
                "test loss barrier (nats)",
                tuple(curve(order, range(len(labels[order])), rows[order]) for order in orders[:2]),
            ),
        ),
    )


@experiment(
    "sim-stability",
    "Simultaneous connectivity, Figures 6, 19 and 20",
    "Instability analysis: from which epoch on children of one network stay connected",
    Setting(recipe=Recipe(weight_decay=0.0, epochs=40, keep=(0, 1, 2, 5, 10)), widths=(128,), points=5),
    Setting(recipe=replace(PAPER_MLP, keep=(0, 1, 2, 5, 10, 25)), widths=(512,), points=25),
)
def stability(lab: Lab, setting: Setting) -> Result:
    """The barrier between two children of each kept epoch."""
    rows, epochs = [], []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        checkpoints = lab.checkpoints(recipe)
        epochs = [epoch for epoch in checkpoints if epoch < recipe.epochs]

        def child(start: State, position: int, order: int, recipe: Recipe = recipe, at: list[int] = epochs) -> State:
            rest = replace(recipe, epochs=recipe.epochs - at[position], order=order, keep=())
            return lab.retrained(rest, start, label=f"child of epoch {at[position]}")

        states = [checkpoints[epoch] for epoch in epochs]
        rows.append(
            list(instability(lab.model(recipe), states, child, lab.test(recipe.dataset), points=setting.points))
        )
    return Result(
        figures=tuple(
            Figure(f"barrier of two children, spawned after epoch {epoch}", tuple(row[i] for row in rows), "", "nats")
            for i, epoch in enumerate(epochs)
        ),
        claims=(
            Claim(
                "training becomes stable early: the children of the last spawning epoch are closer than those of the "
                "initialisation, by a factor of 2 or more, or below 0.01 nats",
                tuple(row[-1] < max(0.01, 0.5 * row[0]) for row in rows),
            ),
        ),
        charts=(
            Chart(
                "instability", "epoch of spawning", "test loss barrier (nats)", (curve("two children", epochs, rows),)
            ),
        ),
    )
