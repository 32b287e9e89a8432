"""Frank-Wolfe over doubly stochastic matrices: all groups move at once, and the end is rounded.

C2M3 (Crisostomi et al. 2024), Algorithm 1, for two models. The objective is bilinear in the groups, so that along the
segment from the point P to the vertex S (the permutations that solve each group's assignment) it is a quadratic, and
its gradient is linear: ``G(P + t (S - P)) = (1 - t) G(P) + t G(S)``. The step is therefore exact, and only gradients at
permutations are ever computed: index vectors, and matrix products over what moved since the last vertex.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.matching.control import Control
from fedrebasin.matching.coordinate import climb
from fedrebasin.matching.method import Point
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.steps import Gradient, WarmAssignment
from fedrebasin.threads import in_threads

# A step that adds less than this share of all that was added so far ends the search.
_LITTLE = 1e-5


def relaxable(problem: Problem) -> tuple[str, ...]:
    """The groups that can be relaxed: in no tensor do more than two dimensions move."""
    return tuple(
        name
        for name in problem.moved
        if name in problem.flat and all(len(term.others) <= 1 for term in problem.terms[name])
    )


@dataclass(frozen=True)
class FrankWolfe:
    """All groups at once over doubly stochastic matrices, then coordinate ascent from where that is rounded.

    What cannot be relaxed stays where the best point has it, and joins in the ascent.

    Args:
        max_sweeps: an upper bound for the steps, and for the sweeps of the ascent.
    """

    max_sweeps: int = 100

    def __call__(
        self, problem: Problem, start: Point, best: Point, generator: torch.Generator, control: Control
    ) -> Point:
        """The end of the ascent; the best point where no time is left: see :class:`Method`."""
        if control.expired:
            return best
        begin = {**best.indices, **{name: start.indices[name] for name in relaxable(problem)}}
        relaxed = relax(problem, begin, self.max_sweeps, control)
        return climb(problem, relaxed, generator, self.max_sweeps, control).point


def relax(problem: Problem, start: Indices, max_steps: int, control: Control) -> Indices:
    """Maximise the relaxed objective from a permutation, and round the result.

    Args:
        problem: what is maximised.
        start: where to begin; groups that cannot be relaxed stay there.
        max_steps: an upper bound.
        control: the time budget and the number of threads.

    Returns:
        the permutations nearest to the relaxed optimum; not a local optimum until coordinate ascent has polished it.
    """
    names = list(relaxable(problem))
    gradient = Gradient(problem)
    solvers = {name: WarmAssignment() for name in names}

    def best(matrices: dict[str, Tensor]) -> Indices:
        found = in_threads(lambda name: solvers[name].solve(matrices[name].cpu().numpy()), names, control.threads)
        return {name: torch.from_numpy(index) for name, index in zip(names, found, strict=True)}

    point = {}
    slope = {}
    for name in names:
        cost = gradient.at(name, start)
        point[name] = torch.zeros_like(cost)
        _add(point[name], start[name], 1.0)
        slope[name] = cost.clone()
    total = 0.0
    for _ in range(max_steps):
        vertex = {**start, **best(slope)}
        first, last = 0.0, 0.0
        for name in names:
            there = gradient.at(name, vertex)
            first += _along(slope[name], vertex[name], point[name])
            last += _along(there, vertex[name], point[name])
        # The objective's derivative falls (or rises) linearly from first, at the point, to last, at the vertex.
        step = 1.0 if last >= 0 else max(0.0, first / (first - last)) if first > 0 else 0.0
        gain = step * first + step**2 * (last - first) / 2
        total += gain
        for name in names:
            point[name].mul_(1 - step)
            _add(point[name], vertex[name], step)
            slope[name].mul_(1 - step).add_(gradient.at(name, vertex), alpha=step)
        if gain <= _LITTLE * total or control.expired:
            break
    return {**start, **best(point)}


def _along(slope: Tensor, vertex: Tensor, point: Tensor) -> float:
    """``<slope, S - P>``."""
    at_vertex = slope.gather(1, vertex.to(slope.device)[:, None]).sum()
    return float(at_vertex - slope.flatten() @ point.flatten())


def _add(matrix: Tensor, index: Tensor, weight: float) -> None:
    """Add ``weight`` times a permutation matrix."""
    places = torch.arange(len(index), device=matrix.device)
    matrix[places, index.to(matrix.device)] += weight
