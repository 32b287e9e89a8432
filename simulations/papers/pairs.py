"""Two models of an experiment, and the measures that several experiments take of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import nn

from fedrebasin.analysis import Barrier, loss_barrier, random_permutation_barriers
from fedrebasin.calibration import fit_temperature
from fedrebasin.matching import ActivationMatching, Alignment, Matcher, StraightThrough, WeightMatching
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State
from fedrebasin.sums import Score, evaluate, logits_of

from .lab import Batches, Lab
from .recipe import Recipe
from .registry import Setting
from .result import Chart, Figure, Rows, chart, figures_along

#: Examples of one step of the straight-through estimator.
STEP = 100


@dataclass(frozen=True)
class Bench:
    """Everything to measure models of a recipe on.

    Args:
        lab: where data come from.
        recipe: of the models, but for their seeds.
    """

    lab: Lab
    recipe: Recipe

    @cached_property
    def model(self) -> nn.Module:
        """The architecture."""
        return self.lab.model(self.recipe)

    @cached_property
    def spec(self) -> PermutationSpec:
        """The permutations that it allows."""
        return self.lab.spec(self.recipe)

    @cached_property
    def test(self) -> Batches:
        """What is reported is measured on these."""
        return self.lab.test(self.recipe.dataset)

    @cached_property
    def held_out(self) -> Batches:
        """Inverse temperatures are fitted on these."""
        return self.lab.held_out(self.recipe.dataset)

    def temperature(self, state: State) -> float:
        """The inverse temperature that is best for a state on the held-out part."""
        return fit_temperature(*logits_of(self.model, state, self.held_out)).beta

    def score(self, state: State, beta: float = 1.0) -> Score:
        """Loss and accuracy of a state on the test set."""
        return evaluate(self.model, state, self.test, beta)


@dataclass(frozen=True)
class Pair(Bench):
    """Models A and B with everything to measure them on.

    Args:
        lab: where data come from.
        recipe: of A; B has the same but for its seed.
        a: state dict of A.
        b: state dict of B.
        matcher: of B to A.
    """

    a: State
    b: State
    matcher: Matcher = field(default_factory=WeightMatching)

    @cached_property
    def alignment(self) -> Alignment:
        """B's permutation."""
        return self.matcher(self.spec, reference=self.a, candidate=self.b)

    def matchers(self) -> dict[str, Matcher]:
        """Git Re-Basin's three, by name; those that need data get training examples."""
        data = self.lab.training_batches(self.recipe)
        steps = [
            batch for batches in data for batch in zip(*(torch.split(part, STEP) for part in batches), strict=True)
        ]
        return {
            "weight matching": self.matcher,
            "activation matching": ActivationMatching(self.model, data),
            "straight-through estimator": StraightThrough(self.model, steps, learning_rate=1e-2),
        }

    @cached_property
    def aligned(self) -> State:
        """B after its permutation."""
        return self.alignment.apply(self.b)

    def barrier(self, b: State, points: int, calibrated: bool = False) -> Barrier:
        """From A to a state, on the test set; BatchNorm's statistics are taken anew at each point."""
        normalised = any(key.endswith("running_var") for key in self.a)
        return loss_barrier(
            self.model,
            self.a,
            b,
            self.test,
            points,
            recalibrate=self.lab.training_batches(self.recipe) if normalised else None,
            calibrate=self.held_out if calibrated else None,
        )

    def shuffled_barrier(self, points: int, seed: int) -> float:
        """The mean calibrated barrier to B in three random orders of its units."""
        found = random_permutation_barriers(
            self.model,
            self.spec,
            self.a,
            self.b,
            self.test,
            3,
            points,
            calibrate=self.held_out,
            generator=torch.Generator().manual_seed(seed),
        )
        return fmean(barrier.value for barrier in found)


def pair(lab: Lab, setting: Setting, seed: int, width: float | None = None) -> Pair:
    """Two independently trained models of a seed."""
    return pair_of(lab, setting.of(width), seed)


def pair_of(lab: Lab, recipe: Recipe, seed: int) -> Pair:
    """Two independently trained models of a recipe whose own seed is 0."""
    first, second = (recipe.member(seed, number) for number in (0, 1))
    return Pair(lab, first, lab.trained(first), lab.trained(second))


def spawned_pair(lab: Lab, setting: Setting, seed: int) -> Pair:
    """Two children of one training, apart after the recipe's ``spawn`` epochs."""
    recipe = setting.of(seed=seed)
    return Pair(lab, recipe, lab.child(recipe, 0), lab.child(recipe, 1))


def independent_pair(lab: Lab, setting: Setting, seed: int) -> Pair:
    """Two models of the setting that share nothing."""
    return pair(lab, replace(setting, recipe=replace(setting.recipe, spawn=0)), seed)


def spawned_and_independent(lab: Lab, setting: Setting, seed: int) -> tuple[tuple[Pair, State], ...]:
    """Pairs with what B is there: children of one training, a stranger in A's order, and one as it is."""
    spawned, independent = spawned_pair(lab, setting, seed), independent_pair(lab, setting, seed)
    return (spawned, spawned.b), (independent, independent.aligned), (independent, independent.b)


def members(lab: Lab, setting: Setting, seed: int, width: float | None = None) -> tuple[Bench, list[State]]:
    """The setting's models of a seed, and what to measure them on."""
    recipes = [setting.of(width, seed, number) for number in range(setting.models)]
    return Bench(lab, recipes[0]), [lab.trained(recipe) for recipe in recipes]


def trajectories(lab: Lab, setting: Setting, seed: int) -> tuple[Bench, dict[int, State], dict[int, State]]:
    """The kept epochs of two trainings of a seed, and what to measure them on."""
    first, second = (setting.of(seed=seed, number=number) for number in (0, 1))
    return Bench(lab, first), lab.checkpoints(first), lab.checkpoints(second)


def by_width(
    lab: Lab, setting: Setting, measure: Callable[[Pair], tuple[float, ...]]
) -> list[tuple[tuple[float, ...], ...]]:
    """``found[k][s][w]``: the k-th measured number of seed s at width w."""
    rows = [[measure(pair(lab, setting, seed, width)) for width in setting.widths] for seed in setting.seeds]
    return [tuple(tuple(cell[k] for cell in row) for row in rows) for k in range(len(rows[0][0]))]


def width_figures(setting: Setting, name: str, rows: Rows, unit: str = "", widest: str = "") -> tuple[Figure, ...]:
    """One figure for each width of what :func:`by_width` found; ``widest``: the paper's number for its widest model."""
    *narrow, wide = figures_along("{}, width {:g}", {name: rows}, setting.widths, unit)
    return (*narrow, replace(wide, paper=widest))


def width_chart(setting: Setting, title: str, y: str, lines: Mapping[str, Rows]) -> Chart:
    """A curve for each entry of ``lines`` against width, on a logarithmic axis."""
    return chart(title, setting.width_axis, y, setting.widths, lines, log_x=True)
