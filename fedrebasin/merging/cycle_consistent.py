"""CycleConsistent: all models into one common order (C2M3, Crisostomi et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedrebasin.matching import Control, Problem, Progress, WeightMatching, relaxable
from fedrebasin.merging.average import normalised
from fedrebasin.merging.frank_wolfe import relax_together
from fedrebasin.merging.merge import Merge, collected
from fedrebasin.merging.protocol import Placer, Together, TwoStepAligner
from fedrebasin.merging.rounds import Rounds, steps_of
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State


@dataclass(frozen=True)
class CycleConsistent(TwoStepAligner):
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

    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        """A placer that holds the models: see :class:`TwoStepAligner`."""
        return Together(spec, self._merge)

    def _merge(self, spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> Merge:
        spec, held = collected(spec, states)
        shares = normalised(weights, len(held))
        control = Control(self.seconds, self.progress, self.threads)
        rounds = Rounds(spec, held, shares, [Permutation.identity(spec)] * len(held), control)
        generator = torch.Generator().manual_seed(self.seed)
        matcher = WeightMatching(method="coordinate", seed=self.seed, threads=self.threads)
        polish = steps_of(matcher, spec, held, control)
        with torch.no_grad():
            copies = rounds.start_by_signatures()
            problems = [Problem(spec, state, state) for state in rounds.states]
            if len(relaxable(problems[0])) < len(problems[0].moved):
                rounds.run(polish, generator, 1)
                problems = [Problem(spec, state, state) for state in rounds.states]
            if relaxable(problems[0]) and len(held) > 1 and not copies:
                steps = relax_together(problems, shares, self.max_steps, control)
                found = [step.compose(done) for step, done in zip(steps, rounds.permutations, strict=True)]
                relaxed = Rounds(spec, held, shares, found, control)
                if relaxed.spread <= rounds.spread:
                    rounds.restart(found)
            rounds.converged = False
            rounds.run(polish, generator, self.max_rounds)
        return rounds.merge()
