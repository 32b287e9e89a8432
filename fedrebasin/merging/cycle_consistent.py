"""CycleConsistent: all models into one common order (C2M3, Crisostomi et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedrebasin.matching import Control, Problem, Progress, State, WeightMatching, relaxable
from fedrebasin.merging.average import normalised
from fedrebasin.merging.merge import Merge, collected
from fedrebasin.merging.rounds import Rounds, by_ascent
from fedrebasin.merging.universe import to_universe
from fedrebasin.spec import Permutation, PermutationSpec, warn_of_gaps


@dataclass(frozen=True)
class CycleConsistent:
    """Align all models to one universe, all at the same time; no model is the reference and none comes first.

    The permutation from model i to model j is ``P_j^-1 P_i``: from i to j to k is from i to k, around every cycle.
    Frank-Wolfe moves all groups of all models at once; the rounded result is polished by MergeMany's rounds, which
    also align the groups that cannot be relaxed. The spread never rises: a relaxation that does not help is dropped.

    Args:
        seed: of the orders in the rounds.
        max_steps: an upper bound for Frank-Wolfe.
        max_rounds: an upper bound for the rounds.
        threads: for the assignments.
        seconds: a time budget: the models as they are when it is spent are averaged.
        progress: called with the number of the round and the spread after it.
    """

    seed: int = 0
    max_steps: int = 100
    max_rounds: int = 100
    threads: int = 1
    seconds: float | None = None
    progress: Progress | None = None
    needs_all: ClassVar[bool] = True

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and average: see :class:`fedrebasin.merging.Aligner`."""
        spec, held = collected(spec, states)
        warn_of_gaps(spec)
        shares = normalised(weights, len(held))
        control = Control(self.seconds, self.progress, self.threads)
        rounds = Rounds(spec, held, shares, [Permutation.identity(spec)] * len(held), control)
        generator = torch.Generator().manual_seed(self.seed)
        matcher = WeightMatching(method="coordinate", seed=self.seed, threads=self.threads)
        polish = by_ascent(spec, held, matcher, control)
        with torch.no_grad():
            copies = rounds.start_by_signatures()
            problems = [Problem(spec, state, state) for state in rounds.states]
            if len(relaxable(problems[0])) < len(problems[0].moved):
                rounds.run(polish, generator, 1)
                problems = [Problem(spec, state, state) for state in rounds.states]
            if relaxable(problems[0]) and len(held) > 1 and not copies:
                steps = to_universe(problems, shares, self.max_steps, control)
                found = [step.compose(done) for step, done in zip(steps, rounds.permutations, strict=True)]
                relaxed = Rounds(spec, held, shares, found, control)
                if relaxed.spread <= rounds.spread:
                    rounds.restart(found)
            rounds.converged = False
            rounds.run(polish, generator, self.max_rounds)
        return rounds.merge()
