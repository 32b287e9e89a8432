"""Experiments of Simultaneous connectivity (Sharma, Kwok et al., 2024): trajectories, sets, layers, stability."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Literal

from fedrebasin.analysis import (
    Barrier,
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
from .pairs import Bench, members, pair, trajectories, width_chart
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Claim, Figure, Result, at, below, by_name, chart, falls, figures_along, rises, times

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
    loss: dict[int, list[list[float]]] = defaultdict(list)
    error: dict[int, list[list[float]]] = defaultdict(list)
    shares: list[list[float]] = []
    epochs: list[int] = []
    for seed in setting.seeds:
        nets, first, second = trajectories(lab, setting, seed)
        epochs = list(first)
        found = {e: WeightMatching()(nets.spec, reference=first[e], candidate=second[e]).permutation for e in epochs}
        for epoch, permutation in found.items():
            paths = [
                loss_barrier(
                    nets.model, first[e], permutation.apply(second[e]), nets.test, setting.points, "simultaneous"
                )
                for e in epochs
            ]
            loss[epoch].append([path.value for path in paths])
            error[epoch].append([100 * path.error_barrier("simultaneous") for path in paths])
        shares.append([fixed_points(found[epoch], found[epochs[-1]]).share for epoch in epochs])
    measures = (("loss", loss, "nats", 1e-3), ("error", error, "% points", 0.0))
    return Result(
        figures=tuple(
            Figure(
                f"mean {name} barrier over the trajectory, permutation of epoch {epoch}",
                tuple(map(fmean, by_seed)),
                "lowest of all" if epoch == epochs[-1] else "",
                unit,
            )
            for name, rows, unit, _ in measures
            for epoch, by_seed in rows.items()
        ),
        claims=(
            *(claim for name, rows, unit, slack in measures for claim in _last_is_best(name, rows, unit, slack)),
            rises(
                "the permutations settle: the share of units placed as at the end rises with time",
                [row[:-1] for row in shares],
            ),
        ),
        charts=(
            *(
                chart(
                    f"{name} barrier along the trajectory",
                    "epoch",
                    f"test {name} barrier ({unit})",
                    epochs,
                    # that of untrained networks is far above all others
                    {f"permutation of epoch {epoch}": by_seed for epoch, by_seed in rows.items() if epoch},
                )
                for name, rows, unit, _ in measures
            ),
            chart("units placed as at the end", "epoch", "share", epochs, {"fixed points": shares}),
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

    def measure(seed: int, width: float) -> dict[str, float]:
        nets, states = members(lab, setting, seed, width)
        found = strong_connectivity(nets.model, nets.spec, states, nets.test, points=setting.points)
        return {
            "weak": weak_connectivity(nets.model, nets.spec, states, nets.test, points=setting.points).mean,
            "strong, direct": found.direct.mean,
            "strong, through a third": found.through_third.mean,
        }

    rows = by_name(by_name(measure(seed, width) for width in setting.widths) for seed in setting.seeds)
    third = rows["strong, through a third"]
    return Result(
        figures=figures_along("barrier, {}, width {:g}", rows, setting.widths, "nats"),
        claims=(
            falls("through a third network the barrier falls with width, by half or more", third, 0.5),
            below(
                "at the narrowest it is higher than with a permutation for each pair: weak is not strong connectivity",
                at(rows["weak"], 0),
                at(third, 0),
                "nats",
            ),
        ),
        charts=(width_chart(setting, "weak and strong connectivity", "test loss barrier (nats)", rows),),
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
    found: dict[str, list[dict[str, Barrier]]] = defaultdict(list)
    for seed in setting.seeds:
        p = pair(lab, setting, seed)
        for order in orders:
            found[order].append(
                partial_barriers(p.model, p.alignment.permutation, p.a, p.b, p.test, order, setting.points)
            )
    rows = {order: [[one.value for one in barriers.values()] for barriers in found[order]] for order in orders}
    up = at(rows["bottom-up"], -1)
    lines = {order: rows[order] for order in ("bottom-up", "top-down")}
    return Result(
        figures=tuple(
            figure
            for order, by_seed in rows.items()
            for figure in figures_along("barrier, {}, {}", {order: by_seed}, found[order][0], "nats")
        ),
        claims=(
            below(
                "all layers' permutations together do what no single layer's does: half of the best one's barrier",
                up,
                [0.5 * min(row) for row in rows["put-in"]],
                "nats",
            ),
            below(
                "leaving out one layer's permutation raises the barrier, whichever it is",
                up,
                list(map(min, rows["leave-out"])),
                "nats",
            ),
        ),
        charts=(
            chart(
                "partial permutations",
                "layers permuted",
                "test loss barrier (nats)",
                range(len(found["bottom-up"][0])),
                lines,
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
        nets = Bench(lab, setting.of(seed=seed))
        checkpoints = lab.checkpoints(nets.recipe)
        epochs = [epoch for epoch in checkpoints if epoch < nets.recipe.epochs]

        def child(
            start: State, position: int, order: int, recipe: Recipe = nets.recipe, at: list[int] = epochs
        ) -> State:
            rest = replace(recipe, epochs=recipe.epochs - at[position], order=order, keep=())
            return lab.retrained(rest, start, label=f"child of epoch {at[position]}")

        states = [checkpoints[epoch] for epoch in epochs]
        loss.append(list(instability(nets.model, states, child, nets.test, points=setting.points)))
        errors = instability(nets.model, states, child, nets.test, points=setting.points, of="error")
        error.append(times(100, errors))
    measures = (("loss", loss, "nats", 0.01), ("error", error, "% points", 0.5))
    return Result(
        figures=tuple(
            figure
            for name, rows, unit, _ in measures
            for figure in figures_along(
                "{} barrier of two children, spawned after epoch {}", {name: rows}, epochs, unit
            )
        ),
        claims=tuple(
            below(
                f"{name}: training becomes stable early: the children of the last spawning epoch are closer than those "
                f"of the initialisation, by a factor of 2 or more, or below {small:g} {unit}",
                at(rows, -1),
                [max(small, 0.5 * first) for first in at(rows, 0)],
                unit,
            )
            for name, rows, unit, small in measures
        ),
        charts=tuple(
            chart(
                f"instability of the {name}",
                "epoch of spawning",
                f"test {name} barrier ({unit})",
                epochs,
                {"two children": rows},
            )
            for name, rows, unit, _ in measures
        ),
    )
