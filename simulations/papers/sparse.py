"""Experiments of Simultaneous connectivity on pruned networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Literal

from fedrebasin.analysis import (
    Pruned,
    apply_mask,
    dense_mask,
    iterative_pruning,
    loss_barrier,
    one_shot_pruning,
    simultaneous_connectivity,
    transport_mask,
)
from fedrebasin.matching import WeightMatching
from fedrebasin.spec import Permutation
from fedrebasin.state import State
from fedrebasin.sums import evaluate

from .lab import Lab
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Chart, Figure, Result, below, curve

SPARSE = Setting(recipe=Recipe(weight_decay=0.0, epochs=30, keep=(1,)), widths=(128,), points=5)
PAPER_SPARSE = Setting(recipe=replace(PAPER_MLP, keep=(1,)), widths=(512,), points=25)
LEVELS, SHARE = 5, 0.4


Rewinding = Literal["weights", "learning-rate"]


def _rest(recipe: Recipe) -> Recipe:
    """The training from the rewinding point on."""
    return replace(recipe, epochs=recipe.epochs - recipe.keep[0], keep=())


def _trainer(lab: Lab, recipe: Recipe, label: str) -> Callable[[State, State], State]:
    def train(start: State, mask: State) -> State:
        return lab.retrained(_rest(recipe), start, mask, label)

    return train


def _pruned(lab: Lab, recipe: Recipe, rewinding: Rewinding = "weights") -> tuple[Pruned, ...]:
    rewind = lab.checkpoints(recipe)[recipe.keep[0]]
    return iterative_pruning(_trainer(lab, recipe, "pruning"), rewind, LEVELS, SHARE, rewinding=rewinding)


@experiment(
    "sim-pruning",
    "Simultaneous connectivity, Figures 4, 5, 7 to 10 and 17",
    "The permutation of two dense networks aligns their pruned descendants and carries masks across",
    SPARSE,
    PAPER_SPARSE,
)
def pruning(lab: Lab, setting: Setting) -> Result:
    """Barriers at every level under the dense permutation, and accuracies under a transported mask."""
    rows: dict[str, list[list[float]]] = {"dense permutation": [], "no permutation": []}
    accuracy: dict[str, list[list[float]]] = {}
    levels: list[float] = []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        first, second = (_pruned(lab, setting.of(seed=seed, number=number)) for number in (0, 1))
        levels = [level.sparsity for level in first]
        model, spec, test = lab.model(recipe), lab.spec(recipe), lab.test(recipe.dataset)
        permutation = WeightMatching()(spec, reference=first[0].state, candidate=second[0].state).permutation
        states = [[level.state for level in side] for side in (first, second)]
        identity = Permutation.identity(permutation.spec)
        for name, applied in (("dense permutation", permutation), ("no permutation", identity)):
            barriers = simultaneous_connectivity(model, states[0], states[1], applied, test, setting.points)
            rows[name].append(list(barriers))
        rewind = lab.checkpoints(recipe)[recipe.keep[0]]
        train, again = _trainer(lab, recipe, "masked"), _trainer(lab, recipe, "one-shot")
        cells: dict[str, list[float]] = {}
        for own, other in zip(first[1:], second[1:], strict=True):
            moved = transport_mask(permutation, other.mask, other.state)
            trained = {
                "own mask": own.state,
                "B's mask, permuted": train(apply_mask(rewind, moved), moved),
                "B's mask, as it is": train(apply_mask(rewind, other.mask), other.mask),
                "one-shot": one_shot_pruning(again, rewind, first[0].state, own.sparsity).state,
            }
            for name, state in trained.items():
                cells.setdefault(name, []).append(100 * evaluate(model, state, test).accuracy)
        for name, values in cells.items():
            accuracy.setdefault(name, []).append(values)
    sparse = [100 * level for level in levels]
    permuted, foreign = accuracy["B's mask, permuted"], accuracy["B's mask, as it is"]
    return Result(
        figures=(
            *(
                Figure(f"barrier, {name}, {sparse[-1]:.0f} % sparse", tuple(row[-1] for row in found), "", "nats")
                for name, found in rows.items()
            ),
            *(
                Figure(f"accuracy, {name}, {sparse[-1]:.0f} % sparse", tuple(row[-1] for row in found), "", "%")
                for name, found in accuracy.items()
            ),
        ),
        claims=(
            below(
                "the dense networks' permutation lowers the barrier at every level of sparsity",
                [
                    max(x - y for x, y in zip(*pair, strict=True))
                    for pair in zip(rows["dense permutation"], rows["no permutation"], strict=True)
                ],
                [0.0] * len(setting.seeds),
                "nats",
                "largest difference with and without, and its bound",
            ),
            below(
                "at the sparsest level a permuted mask trains to a higher accuracy than the same mask unpermuted",
                [row[-1] for row in foreign],
                [row[-1] for row in permuted],
                "%",
                "digits are so easy that any mask trains well; unpermuted and permuted",
            ),
        ),
        charts=(
            Chart(
                "barrier of pruned networks",
                "sparsity (%)",
                "test loss barrier (nats)",
                tuple(curve(name, sparse, found) for name, found in rows.items()),
            ),
            Chart(
                "accuracy under masks",
                "sparsity (%)",
                "test accuracy (%)",
                tuple(curve(name, sparse[1:], found) for name, found in accuracy.items()),
            ),
        ),
    )


@experiment(
    "sim-rewinding",
    "Simultaneous connectivity, Figure 13",
    "Weight rewinding against learning-rate rewinding",
    replace(SPARSE, seeds=(0, 1, 2)),
    PAPER_SPARSE,
)
def rewinding(lab: Lab, setting: Setting) -> Result:
    """The barrier between neighbouring levels of sparsity, under both kinds of rewinding."""
    rows: dict[str, list[list[float]]] = {}
    sparse: list[float] = []
    for seed in setting.seeds:
        recipe = setting.of(seed=seed)
        model, test = lab.model(recipe), lab.test(recipe.dataset)
        kinds: tuple[Rewinding, ...] = ("weights", "learning-rate")
        for kind in kinds:
            levels = _pruned(lab, recipe, kind)
            sparse = [100 * level.sparsity for level in levels[1:]]
            states = [apply_mask(level.state, dense_mask(level.state) | dict(level.mask)) for level in levels]
            rows.setdefault(kind, []).append(
                [loss_barrier(model, a, b, test, setting.points, "simultaneous").value for a, b in pairwise(states)]
            )
    weights, rates = rows["weights"], rows["learning-rate"]
    return Result(
        figures=tuple(
            Figure(
                f"barrier between neighbouring levels, mean, {kind} rewinding",
                tuple(fmean(row) for row in found),
                "",
                "nats",
            )
            for kind, found in rows.items()
        ),
        claims=(
            below(
                "learning-rate rewinding keeps neighbouring levels at least as well connected (0.01 nats of slack)",
                [fmean(row) for row in rates],
                [fmean(row) + 0.01 for row in weights],
                "nats",
            ),
        ),
        charts=(
            Chart(
                "neighbouring levels of sparsity",
                "sparsity (%)",
                "test loss barrier (nats)",
                tuple(curve(kind, sparse, found) for kind, found in rows.items()),
            ),
        ),
    )
