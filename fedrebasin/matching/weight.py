"""WeightMatching: align two models by their weights alone (Git Re-Basin, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment, State
from fedrebasin.matching.control import Control, Progress
from fedrebasin.matching.coordinate import climb
from fedrebasin.matching.problem import Problem
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec

Method = Literal["auto", "coordinate", "frank-wolfe", "greedy"]


@dataclass(frozen=True)
class WeightMatching:
    """Maximise ``<vec(A), vec(pi(B))>`` over the permutations pi of the candidate B, A being the reference.

    Every axis of a group votes: incoming and outgoing weights, biases, the scales of normalisations. Statistics do
    not. The objective and its gains are float64; float16 and bfloat16 weights are matched in float32.

    Args:
        method: how the maximum is sought. ``"coordinate"``: Git Re-Basin's Algorithm 1.
        seed: of the order in which groups are visited; the result depends on nothing else.
        max_sweeps: an upper bound.
        init: the permutation to start from; None for the identity.
        seconds: a time budget: the best point found so far is returned when it is spent. With a budget the result
            depends on the machine's speed.
        progress: called with the sweep's number and the objective after it.
        threads: for assignments that do not depend on each other; the result does not depend on it.

    Raises:
        MatchingError: if the method is unknown.
    """

    method: Method = "auto"
    seed: int = 0
    max_sweeps: int = 100
    restarts: int = 1
    init: Permutation | None = None
    seconds: float | None = None
    progress: Progress | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.method not in ("auto", "coordinate", "frank-wolfe", "greedy"):
            raise MatchingError(f"method {self.method!r}: choose auto, coordinate, frank-wolfe or greedy")

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Match two models.

        Args:
            spec: of both models.
            reference: a state dict.
            candidate: a state dict to be permuted.

        Returns:
            the alignment; its trace's objective is ``<vec(A), vec(pi(B))>`` and never falls.

        Raises:
            SpecError: if the spec does not fit one of them.
            MatchingError: if a weight is not finite.
        """
        control = Control(self.seconds, self.progress, self.threads)
        with torch.no_grad():
            problem = Problem(spec, reference, candidate)
            generator = torch.Generator().manual_seed(self.seed)
            ascent = climb(problem, problem.start(self.init), generator, self.max_sweeps, control)
            similarity = problem.similarity(ascent.objective)
        return Alignment(Permutation(problem.spec, ascent.indices), similarity, control.trace())
