"""WeightMatching: align two models by their weights alone (Git Re-Basin, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment, State
from fedrebasin.matching.control import Control, Progress
from fedrebasin.matching.coordinate import Ascent, climb
from fedrebasin.matching.frank_wolfe import frank_wolfe, relaxable
from fedrebasin.matching.greedy import greedy
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.starts import EXACT, is_exact, order_by_signatures
from fedrebasin.spec import Permutation, PermutationSpec

# What an ascent from the order of a copy reaches where it is one; 1 less half of the squared share of the noise.
_COPY = 0.98

Method = Literal["auto", "coordinate", "frank-wolfe", "greedy"]


@dataclass(frozen=True)
class WeightMatching:
    """Maximise ``<vec(A), vec(pi(B))>`` over the permutations pi of the candidate B, A being the reference.

    Every axis of a group votes: incoming and outgoing weights, biases, the scales of normalisations. Statistics do
    not. The objective is added up in float64, and gains that are small are computed in it; weights of 16 and 8 bits are
    matched in float32, complex ones by the real part of their inner product, very large and very small ones at a scale
    where products fit.

    A candidate that is the reference, permuted, is recognised by what permutations do not change, with some noise on it
    too, and found by its units' signatures (:mod:`fedrebasin.matching.signatures`); the history's reason says so. Where
    groups lie in the blocks of others, an ascent from there is tried for strangers as well. Not with ``"greedy"``, nor
    with ``init``.

    Args:
        method: how the maximum is sought. ``"coordinate"``: Git Re-Basin's Algorithm 1, one group after the other in
            seeded orders until none can be improved. ``"frank-wolfe"``: C2M3's relaxation of all groups at once, then
            coordinate ascent from there. ``"greedy"``: one pass in the spec's order, as OT-Fusion and FedMA do it; a
            baseline. ``"auto"``: the better one of coordinate ascent and Frank-Wolfe.
        seed: of the orders in which groups are visited; the result depends on nothing else.
        max_sweeps: an upper bound for each ascent, and for the steps of Frank-Wolfe.
        restarts: how many orders coordinate ascent tries; the best one is kept.
        init: the permutation to start from; None for the identity.
        seconds: a time budget: the best point found so far is returned when it is spent. With a budget the result
            depends on the machine's speed.
        progress: called with the sweep's number and the best objective after it.
        threads: for assignments that do not depend on each other; the result does not depend on it.

    Raises:
        MatchingError: if the method is unknown, or a number is not positive.
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
        for name in ("max_sweeps", "restarts", "threads"):
            if getattr(self, name) < 1:
                raise MatchingError(f"{name} {getattr(self, name)}: it must be at least 1")

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Match two models.

        Args:
            spec: of both models.
            reference: a state dict.
            candidate: a state dict to be permuted.

        Returns:
            the alignment; its history's objective is ``<vec(A), vec(pi(B))>`` and never falls (but with ``"greedy"``).

        Raises:
            SpecError: if the spec does not fit one of them.
            MatchingError: if a weight is not finite, or cannot be read as a number.
        """
        with torch.no_grad():
            problem = Problem(spec, reference, candidate)
            control = Control(self.seconds, self.progress, self.threads, problem.exponent)
            indices = self._search(problem, control)
            products = problem.own_products() if control.certificate == EXACT else problem.inner_products(indices)
        similarity = problem.similarity(sum(products.values()))
        return Alignment(Permutation(problem.spec, indices), similarity, control.history(), problem.by_layer(products))

    def _search(self, problem: Problem, control: Control) -> Indices:
        start = problem.start(self.init)
        products = problem.inner_products(start)
        known = sum(products.values())
        control.report(known)
        if self.method == "greedy":
            return self._greedy(problem, start, control)
        generator = torch.Generator().manual_seed(self.seed)
        found: list[Ascent] = []
        if self.init is None and not control.expired:
            order = order_by_signatures(problem, products, self.threads)
            if order is not None:
                found.append(self._from_signatures(problem, order, generator, control))
                if control.certificate:
                    return found[0].indices
        # What Frank-Wolfe cannot relax it takes from an ascent.
        if self.method != "frank-wolfe" or len(relaxable(problem)) < len(problem.moved):
            found += [
                climb(problem, start, generator, self.max_sweeps, control, known=known) for _ in range(self.restarts)
            ]
        if found and _is_perfect(found[0]):
            control.certificate = EXACT
            return found[0].indices
        if self.method != "coordinate" and not control.expired:
            begin = max(found, key=_objective).indices if found else start
            begin = {**begin, **{name: start[name] for name in relaxable(problem)}}
            relaxed = frank_wolfe(problem, begin, self.max_sweeps, control)
            found.append(climb(problem, relaxed, generator, self.max_sweeps, control))
        best = max(found, key=_objective)
        # A start from which the search went astray is better than where it ended.
        if best.objective < control.objectives[0]:
            return start
        return best.indices

    def _from_signatures(
        self, problem: Problem, order: Indices, generator: torch.Generator, control: Control
    ) -> Ascent:
        """The ascent from the order of the signatures, with a certificate where the candidate is a copy."""
        if is_exact(problem, order):
            ascent = Ascent(problem, order, known=sum(problem.own_products().values()))
            control.converged, control.certificate = True, EXACT
            control.report(ascent.objective)
            return ascent
        ascent = climb(problem, order, generator, self.max_sweeps, control)
        if problem.similarity(ascent.objective) > _COPY and not control.expired:
            control.certificate = f"{EXACT}, with small changes"
        return ascent

    def _greedy(self, problem: Problem, start: Indices, control: Control) -> Indices:
        indices = greedy(problem, start, control)
        control.objectives.append(problem.objective(indices))
        control.converged = not control.expired
        return indices


def _objective(ascent: Ascent) -> float:
    return ascent.objective


def _is_perfect(ascent: Ascent) -> bool:
    """Whether the candidate is the reference, permuted: nothing is left to find."""
    near = ascent.problem.similarity(ascent.objective) > 1 - 1e-6
    return near and is_exact(ascent.problem, ascent.indices)
