"""MergeMany: many models, no reference (Git Re-Basin, Algorithm 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fedrebasin.matching import Control, Matcher, Progress, WeightMatching
from fedrebasin.merging.average import normalised
from fedrebasin.merging.merge import Merge, collected
from fedrebasin.merging.protocol import Placer, Together, TwoStepAligner
from fedrebasin.merging.rounds import Rounds, steps_of
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State


@dataclass(frozen=True)
class MergeMany(TwoStepAligner):
    """Align every model in turn to the weighted mean of all others, until none moves.

    One step maximises ``<theta_i, sum of w_j theta_j over j != i>``, the only part of the spread (the weighted mean of
    squared distances to the mean) that depends on model i, so the spread never rises.

    Args:
        matcher: aligns a model to a mean. :class:`WeightMatching` (``"auto"`` and ``"coordinate"``) goes on from
            where the models are (or where the units' signatures put them), at most two sweeps of coordinate ascent at
            each visit: the first means are of models that do not agree yet, so that nothing is gained by matching them
            better. Its other settings count at each visit: ``init`` is then a step from where the model is.
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

    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        """A placer that holds the models: see :class:`TwoStepAligner`."""
        return Together(spec, self._merge)

    def _merge(self, spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> Merge:
        spec, held = collected(spec, states)
        control = Control(self.seconds, self.progress, getattr(self.matcher, "threads", 1))
        still = [Permutation.identity(spec)] * len(held)
        rounds = Rounds(spec, held, normalised(weights, len(held)), still, control)
        if getattr(self.matcher, "starts_by_signatures", False):
            rounds.start_by_signatures()
        step = steps_of(self.matcher, spec, held, control)
        rounds.run(step, torch.Generator().manual_seed(self.seed), self.max_rounds)
        return rounds.merge()
