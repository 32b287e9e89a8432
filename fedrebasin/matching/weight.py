"""WeightMatching: align two models by their weights alone (Git Re-Basin, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment, Step
from fedrebasin.matching.control import Control, Progress
from fedrebasin.matching.coordinate import CoordinateAscent, climb
from fedrebasin.matching.frank_wolfe import FrankWolfe, relaxable
from fedrebasin.matching.greedy import Greedy
from fedrebasin.matching.method import Method, Point
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.starts import EXACT, is_exact, order_by_signatures
from fedrebasin.matching.steps import WarmAssignment
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State

# In a step among many models: the others move before the next one, so that an ascent need not run to its end.
_SWEEPS = 2
# What an ascent from the order of a copy reaches where it is one; 1 less half of the squared share of the noise.
_COPY = 0.98

MethodName = Literal["auto", "coordinate", "frank-wolfe", "greedy"]


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

    method: MethodName = "auto"
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

    @property
    def keeps_aligned(self) -> bool:
        """Whether a candidate stays as it is where every unit is provably nearest to its own."""
        return self.method != "greedy" and self.init is None

    @property
    def starts_by_signatures(self) -> bool:
        """Whether its steps go on from the order that the units' signatures suggest."""
        return self.method in ("auto", "coordinate") and self.init is None

    def steps(self, spec: PermutationSpec, candidates: Sequence[State], control: Control) -> Step | None:
        """Steps of coordinate ascent from where a candidate stands, two sweeps at most; None with other methods.

        Assignments start from the prices of the candidate's step before. See :func:`steps_of`.
        """
        if self.method not in ("auto", "coordinate"):
            return None
        solvers: list[dict[str, WarmAssignment]] = [{} for _ in candidates]
        generator = torch.Generator().manual_seed(self.seed)
        ascend = CoordinateAscent(min(_SWEEPS, self.max_sweeps), self.restarts)

        def step(k: int, reference: State, permutation: Permutation) -> Permutation:
            problem = Problem(spec, reference, candidates[k])
            if self.init is not None:
                permutation = Permutation(spec, problem.start(self.init)).compose(permutation)
            seconds = [budget for budget in (self.seconds, control.remaining) if budget is not None]
            own = Control(min(seconds, default=None), self.progress, self.threads, problem.exponent)
            indices = problem.start(permutation)
            start = Point(indices, problem.objective(indices))
            own.report(start.objective)
            return Permutation(spec, ascend(problem, start, start, generator, own, solvers[k]).indices)

        return step

    def _search(self, problem: Problem, control: Control) -> Indices:
        indices = problem.start(self.init)
        products = problem.inner_products(indices)
        start = Point(indices, sum(products.values()))
        control.report(start.objective)
        generator = torch.Generator().manual_seed(self.seed)
        if self.method == "greedy":
            return Greedy()(problem, start, start, generator, control).indices
        found: list[Point] = []
        if self.init is None and not control.expired:
            order = order_by_signatures(problem, products, self.threads)
            if order is not None:
                found.append(self._from_signatures(problem, order, generator, control))
                if control.certificate:
                    return found[0].indices
        for method in self._methods(problem):
            found.append(method(problem, start, _best(*found, start), generator, control))
            if problem.similarity(found[-1].objective) > 1 - 1e-6 and is_exact(problem, found[-1].indices):
                # The candidate is the reference, permuted: nothing is left to find.
                control.certificate = EXACT
                return found[-1].indices
        # A start from which the search went astray is better than where it ended.
        return _best(*found, start).indices

    def _methods(self, problem: Problem) -> list[Method]:
        ascent, relaxation = CoordinateAscent(self.max_sweeps, self.restarts), FrankWolfe(self.max_sweeps)
        if self.method == "coordinate":
            return [ascent]
        # What Frank-Wolfe cannot relax it takes from an ascent.
        alone = self.method == "frank-wolfe" and len(relaxable(problem)) == len(problem.moved)
        return [relaxation] if alone else [ascent, relaxation]

    def _from_signatures(self, problem: Problem, order: Indices, generator: torch.Generator, control: Control) -> Point:
        """Where the ascent from the order of the signatures ends; with a certificate where the candidate is a copy."""
        if is_exact(problem, order):
            control.converged, control.certificate = True, EXACT
            control.report(sum(problem.own_products().values()))
            return Point(order, control.objectives[-1])
        found = climb(problem, order, generator, self.max_sweeps, control).point
        if problem.similarity(found.objective) > _COPY and not control.expired:
            control.certificate = f"{EXACT}, with small changes"
        return found


def _best(*points: Point) -> Point:
    """The best of them, the first one of equals."""
    return max(points, key=lambda point: point.objective)
