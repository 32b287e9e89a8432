"""Experiments of Simultaneous connectivity on pruned networks."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
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

from .lab import Lab
from .pairs import Bench
from .recipe import PAPER_MLP, Recipe
from .registry import Setting, experiment
from .result import Result, at, below, chart, each, figures

SPARSE = Setting(recipe=Recipe(weight_decay=0.0, epochs=30, keep=(1,)), widths=(128,), points=5)
PAPER_SPARSE = Setting(recipe=replace(PAPER_MLP, keep=(1,)), widths=(512,), points=25)
LEVELS, SHARE = 5, 0.4

Rewinding = Literal["weights", "learning-rate"]


def _trainer(lab: Lab, recipe: Recipe, label: str) -> Callable[[State, State], State]:
    """The training from the rewinding point on."""
    rest = replace(recipe, epochs=recipe.epochs - recipe.keep[0], keep=())
    return lambda start, mask: lab.retrained(rest, start, mask, label)


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
    rows: dict[str, list[list[float]]] = defaultdict(list)
    accuracy: dict[str, list[list[float]]] = defaultdict(list)
    sparse: list[float] = []
    for seed in setting.seeds:
        nets = Bench(lab, setting.of(seed=seed))
        first, second = (_pruned(lab, setting.of(seed=seed, number=number)) for number in (0, 1))
        sparse = [100 * level.sparsity for level in first]
        permutation = WeightMatching()(nets.spec, reference=first[0].state, candidate=second[0].state).permutation
        a, b = ([level.state for level in side] for side in (first, second))
        identity = Permutation.identity(permutation.spec)
        for name, applied in (("dense permutation", permutation), ("no permutation", identity)):
            barriers = simultaneous_connectivity(nets.model, a, b, applied, nets.test, setting.points)
            rows[name].append(list(barriers))
        rewind = lab.checkpoints(nets.recipe)[nets.recipe.keep[0]]
        train, again = _trainer(lab, nets.recipe, "masked"), _trainer(lab, nets.recipe, "one-shot")
        cells: dict[str, list[float]] = defaultdict(list)
        for own, other in zip(first[1:], second[1:], strict=True):
            moved = transport_mask(permutation, other.mask, other.state)
            trained = {
                "own mask": own.state,
                "B's mask, permuted": train(apply_mask(rewind, moved), moved),
                "B's mask, as it is": train(apply_mask(rewind, other.mask), other.mask),
                "one-shot": one_shot_pruning(again, rewind, first[0].state, own.sparsity).state,
            }
            for name, state in trained.items():
                cells[name].append(100 * nets.score(state).accuracy)
        for name, values in cells.items():
            accuracy[name].append(values)
    both = zip(rows["dense permutation"], rows["no permutation"], strict=True)
    return Result(
        figures=(
            *figures(f"barrier, {{}}, {sparse[-1]:.0f} % sparse", each(itemgetter(-1), rows), "nats"),
            *figures(f"accuracy, {{}}, {sparse[-1]:.0f} % sparse", each(itemgetter(-1), accuracy), "%"),
        ),
        claims=(
            below(
                "the dense networks' permutation lowers the barrier at every level of sparsity",
                [max(x - y for x, y in zip(*pair, strict=True)) for pair in both],
                0.0,
                "nats",
                "largest difference with and without, and its bound",
            ),
            below(
                "at the sparsest level a permuted mask trains to a higher accuracy than the same mask unpermuted",
                at(accuracy["B's mask, as it is"], -1),
                at(accuracy["B's mask, permuted"], -1),
                "%",
                "digits are so easy that any mask trains well; unpermuted and permuted",
            ),
        ),
        charts=(
            chart("barrier of pruned networks", "sparsity (%)", "test loss barrier (nats)", sparse, rows),
            chart("accuracy under masks", "sparsity (%)", "test accuracy (%)", sparse[1:], accuracy),
        ),
    )


@experiment(
    "sim-rewinding",
    "Simultaneous connectivity, Figure 13",
    "Weight rewinding against learning-rate rewinding",
    SPARSE,
    PAPER_SPARSE,
)
def rewinding(lab: Lab, setting: Setting) -> Result:
    """The barrier between neighbouring levels of sparsity, under both kinds of rewinding."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    sparse: list[float] = []
    kinds: tuple[Rewinding, ...] = ("weights", "learning-rate")
    for seed in setting.seeds:
        nets = Bench(lab, setting.of(seed=seed))
        for kind in kinds:
            levels = _pruned(lab, nets.recipe, kind)
            sparse = [100 * level.sparsity for level in levels[1:]]
            states = [apply_mask(level.state, dense_mask(level.state) | dict(level.mask)) for level in levels]
            paths = [
                loss_barrier(nets.model, a, b, nets.test, setting.points, "simultaneous") for a, b in pairwise(states)
            ]
            rows[kind].append([path.value for path in paths])
    means = each(fmean, rows)
    return Result(
        figures=figures("barrier between neighbouring levels, mean, {} rewinding", means, "nats"),
        claims=(
            below(
                "learning-rate rewinding keeps neighbouring levels at least as well connected (0.01 nats of slack)",
                means["learning-rate"],
                [mean + 0.01 for mean in means["weights"]],
                "nats",
            ),
        ),
        charts=(chart("neighbouring levels of sparsity", "sparsity (%)", "test loss barrier (nats)", sparse, rows),),
    )
