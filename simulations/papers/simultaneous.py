"""Experiments of Simultaneous connectivity (Sharma, Kwok et al., 2024): trajectories, sets, layers, stability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Literal

from fedrebasin.analysis import (
    fixed_points,
    instability,
    loss_barrier,
    partial_barriers,
    strong_connectivity,
    weak_connectivity,
)
from fedrebasin.matching import WeightMatching
from fedrebasin.state import State

from .lab import Lab
from .pairs import pair
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Chart, Claim, Figure, Result, below, curve, falls, rises

Order = Literal["bottom-up", "top-down", "put-in", "leave-out"]


@experiment(
    "sim-trajectory",
    "Simultaneous connectivity, Figures 1 to 3 and 14",
    "One permutation, found at the end of training, aligns the whole trajectory",
    Setting(
        recipe=Recipe(weight_decay=0.0, keep=(0, 1, 2, 4, 8, 16, 30)),
        widths=(256,),
        points=5,
        larger=Recipe(weight_decay=0.0, epochs=10, keep=(0, 1, 2, 3, 5, 7)),
    ),
    Setting(recipe=replace(PAPER_MLP, keep=(0, 1, 2, 5, 10, 25, 50)), widths=(512,), points=25),
)
def trajectory(lab: Lab, setting: Setting) -> Result:
    """Barriers at every kept epoch under the permutation of every kept epoch, and fixed points with the last one."""
    loss: dict[int, list[list[float]]] = {}
    error: dict[int, list[list[float]]] = {}
    shares: list[list[float]] = []
    at: list[int] = []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        first, second = (lab.checkpoints(setting.of(seed=seed, number=number)) for number in (0, 1))
        model, spec, test = lab.model(recipe), lab.spec(recipe), lab.test(recipe.dataset)
        at = list(first)
        found = {e: WeightMatching()(spec, reference=first[e], candidate=second[e]).permutation for e in at}
        for epoch, permutation in found.items():
            paths = [
                loss_barrier(model, first[e], permutation.apply(second[e]), test, setting.points, "simultaneous")
                for e in at
            ]
            loss.setdefault(epoch, []).append([path.value for path in paths])
            error.setdefault(epoch, []).append([100 * path.error_barrier("simultaneous") for path in paths])
        shares.append([fixed_points(found[epoch], found[at[-1]]).share for epoch in at])
    measures = (("loss", loss, "nats", 1e-3), ("error", error, "% points", 0.0))
    claims = [claim for name, rows, unit, slack in measures for claim in _last_is_best(name, rows, unit, slack)]
    return Result(
        figures=tuple(
            Figure(
                f"mean {name} barrier over the trajectory, permutation of epoch {epoch}",
                tuple(fmean(row) for row in found_),
                "lowest of all" if epoch == at[-1] else "",
                unit,
            )
            for name, rows, unit, _ in measures
            for epoch, found_ in rows.items()
        ),
        claims=(
            *claims,
            rises(
                "the permutations settle: the share of units placed as at the end rises with time",
                [row[:-1] for row in shares],
            ),
        ),
        charts=(
            *(
                Chart(
                    f"{name} barrier along the trajectory",
                    "epoch",
                    f"test {name} barrier ({unit})",
                    # that of untrained networks is far above all others
                    tuple(
                        curve(f"permutation of epoch {epoch}", at, found_) for epoch, found_ in rows.items() if epoch
                    ),
                )
                for name, rows, unit, _ in measures
            ),
            Chart("units placed as at the end", "epoch", "share", (curve("fixed points", at, shares),)),
        ),
        notes="Barriers of Eq. 1, of the loss and of the classification error.",
    )


def _last_is_best(name: str, rows: dict[int, list[list[float]]], unit: str, slack: float) -> Iterator[Claim]:
    """That the last permutation has the lowest mean barrier over the trajectory: in each seed, and on their mean."""
    means = {epoch: [fmean(row) for row in found] for epoch, found in rows.items()}
    end = max(means)
    last = means.pop(end)
    best = [min((found[s], epoch) for epoch, found in means.items()) for s in range(len(last))]
    within = f" (within {slack:g} {unit})" if slack else ""
    yield Claim(
        f"{name}: the permutation found at the end aligns the whole trajectory better than that of every time "
        f"before{within}",
        tuple(value <= found + slack for value, (found, _) in zip(last, best, strict=True)),
        f"best earlier epoch by seed, against the end ({unit}): "
        + ", ".join(f"{epoch}: {found:.4f} / {value:.4f}" for value, (found, epoch) in zip(last, best, strict=True)),
    )
    found, epoch = min((fmean(found), epoch) for epoch, found in means.items())
    yield Claim(
        f"{name}: the same on the mean over the seeds",
        (fmean(last) <= found,),
        f"epoch {epoch}: {found:.4f}, the end: {fmean(last):.4f} {unit}",
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
            falls("through a third network the barrier falls with width, by half or more", third, 0.5),
            below(
                "at the narrowest it is higher than with a permutation for each pair: weak is not strong connectivity",
                [row[0] for row in weak_rows],
                [row[0] for row in third],
                "nats",
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
            below(
                "all layers' permutations together do what no single layer's does: half of the best one's barrier",
                [row[-1] for row in up],
                [0.5 * min(row) for row in rows["put-in"]],
                "nats",
            ),
            below(
                "leaving out one layer's permutation raises the barrier, whichever it is",
                [row[-1] for row in up],
                [min(row) for row in rows["leave-out"]],
                "nats",
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
    """The barriers of loss and error between two children of each kept epoch."""
    loss: list[list[float]] = []
    error: list[list[float]] = []
    epochs: list[int] = []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        checkpoints = lab.checkpoints(recipe)
        epochs = [epoch for epoch in checkpoints if epoch < recipe.epochs]

        def child(start: State, position: int, order: int, recipe: Recipe = recipe, at: list[int] = epochs) -> State:
            rest = replace(recipe, epochs=recipe.epochs - at[position], order=order, keep=())
            return lab.retrained(rest, start, label=f"child of epoch {at[position]}")

        model, test = lab.model(recipe), lab.test(recipe.dataset)
        states = [checkpoints[epoch] for epoch in epochs]
        loss.append(list(instability(model, states, child, test, points=setting.points)))
        errors = instability(model, states, child, test, points=setting.points, of="error")
        error.append([100 * value for value in errors])
    measures = (("loss", loss, "nats", 0.01), ("error", error, "% points", 0.5))
    return Result(
        figures=tuple(
            Figure(f"{name} barrier of two children, spawned after epoch {e}", tuple(row[i] for row in rows), "", unit)
            for name, rows, unit, _ in measures
            for i, e in enumerate(epochs)
        ),
        claims=tuple(
            below(
                f"{name}: training becomes stable early: the children of the last spawning epoch are closer than those "
                f"of the initialisation, by a factor of 2 or more, or below {small:g} {unit}",
                [row[-1] for row in rows],
                [max(small, 0.5 * row[0]) for row in rows],
                unit,
            )
            for name, rows, unit, small in measures
        ),
        charts=tuple(
            Chart(
                f"instability of the {name}",
                "epoch of spawning",
                f"test {name} barrier ({unit})",
                (curve("two children", epochs, rows),),
            )
            for name, rows, unit, _ in measures
        ),
    )
