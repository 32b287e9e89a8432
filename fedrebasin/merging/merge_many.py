"""MergeMany: many models, no reference (Git Re-Basin, Algorithm 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedrebasin.matching import Control, Matcher, Progress, State, WeightMatching
from fedrebasin.merging.average import normalised
from fedrebasin.merging.merge import Merge, collected
from fedrebasin.merging.rounds import Rounds, by_ascent, by_matcher
from fedrebasin.spec import Permutation, PermutationSpec, warn_of_gaps


@dataclass(frozen=True)
class MergeMany:
    """Align every model in turn to the weighted mean of all others, until none moves.

    One step maximises ``<theta_i, sum of w_j theta_j over j != i>``, the only part of the spread (the weighted mean of
    squared distances to the mean) that depends on model i, so the spread never rises.

    Args:
        matcher: aligns a model to a mean. :class:`WeightMatching` (``"auto"`` and ``"coordinate"``) goes on from
            where the models are (or where the units' signatures put them), two sweeps of coordinate ascent at each
            visit: the first means are of models that do not agree yet, so that nothing is gained by matching them
            better.
        seed: of the order in which models are visited.
        max_rounds: an upper bound.
        seconds: a time budget: the models as they are when it is spent are averaged.
        progress: called with the number of the round and the spread after it.
    """

    matcher: Matcher = field(default_factory=WeightMatching)
    seed: int = 0
    max_rounds: int = 100
    seconds: float | None = None
    progress: Progress | None = None
    needs_all: ClassVar[bool] = True

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and average: see :class:`fedrebasin.merging.Aligner`."""
        spec, held = collected(spec, states)
        warn_of_gaps(spec)
        control = Control(self.seconds, self.progress)
        still = [Permutation.identity(spec)] * len(held)
        rounds = Rounds(spec, held, normalised(weights, len(held)), still, control)
        generator = torch.Generator().manual_seed(self.seed)
        step = by_matcher(spec, held, self.matcher)
        if isinstance(self.matcher, WeightMatching) and self.matcher.method in ("auto", "coordinate"):
            step = by_ascent(spec, held, self.matcher, control)
            rounds.start_by_signatures()
        rounds.run(step, generator, self.max_rounds)
        return rounds.merge()
