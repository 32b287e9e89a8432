"""Two models of an experiment, and the measures that several experiments take of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from fedrebasin.analysis import Barrier, loss_barrier
from fedrebasin.calibration import fit_temperature
from fedrebasin.matching import ActivationMatching, Alignment, Matcher, StraightThrough, WeightMatching
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State
from fedrebasin.sums import Score, evaluate, logits_of

from .lab import Batches, Lab
from .recipe import Recipe
from .registry import Setting

#: Examples of one step of the straight-through estimator.
STEP = 100


@dataclass(frozen=True)
class Pair:
    """Models A and B with everything to measure them on.

    Args:
        lab: where data come from.
        recipe: of A; B has the same but for its seed.
        a: state dict of A.
        b: state dict of B.
        matcher: of B to A.
    """

    lab: Lab
    recipe: Recipe
    a: State
    b: State
    matcher: Matcher = field(default_factory=WeightMatching)

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

    def score(self, state: State, calibrated: bool = False) -> Score:
        """Loss and accuracy of a state on the test set, with an inverse temperature of the held-out part if asked."""
        beta = fit_temperature(*logits_of(self.model, state, self.held_out)).beta if calibrated else 1.0
        return evaluate(self.model, state, self.test, beta)


def pair(lab: Lab, setting: Setting, width: float | None = None, seed: int = 0) -> Pair:
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
    return pair(lab, replace(setting, recipe=replace(setting.recipe, spawn=0)), seed=seed)


def by_width(
    lab: Lab, setting: Setting, measure: Callable[[Pair], tuple[float, ...]]
) -> list[tuple[tuple[float, ...], ...]]:
    """``found[k][s][w]``: the k-th measured number of seed s at width w."""
    rows = [[measure(pair(lab, setting, width, seed)) for width in setting.widths] for seed in setting.seeds]
    return [tuple(tuple(cell[k] for cell in row) for row in rows) for k in range(len(rows[0][0]))]
