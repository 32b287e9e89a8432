"""Coordinate ascent: Git Re-Basin's Algorithm 1, with every solve that cannot change anything left out."""

from dataclasses import InitVar, dataclass, field

import torch

from fedrebasin.matching.control import Control
from fedrebasin.matching.method import Point
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.steps import Gradient, WarmAssignment, best_move

# Gains this small, relative to the norms' product, are below float32's rounding in a matrix product: they are computed
# again in float64 before they are believed.
_DOUBTFUL = 1e-5
# What counts as no gain: float64's rounding, as a share of what is added up. Not of the norms: small units count too.
_NOTHING = 1e-13


@dataclass
class Ascent:
    """A point on its way up, with everything worth keeping between sweeps.

    Args:
        problem: what is maximised.
        indices: where it stands.
        solvers: by group; those of an earlier ascent with the same candidate know good prices.
        known: the objective there, if it is known already.
    """

    problem: Problem
    indices: Indices
    solvers: dict[str, WarmAssignment] = field(default_factory=dict)
    known: InitVar[float | None] = None
    gradient: Gradient = field(init=False)
    objective: float = field(init=False)

    def __post_init__(self, known: float | None) -> None:
        self.gradient = Gradient(self.problem)
        self.objective = self.problem.objective(self.indices) if known is None else known
        self._clock = 0
        self._moved_at: dict[str, int] = {}
        self._solved_at: dict[str, int] = {}

    def sweep(self, order: list[str], control: Control) -> bool:
        """Solve every group once, in this order; True if something moved.

        A group none of whose neighbours moved since its last solve would get the same answer, and is skipped.
        """
        moved = False
        for name in order:
            last = self._solved_at.get(name, -1)
            if last >= 0 and all(self._moved_at.get(other, -1) < last for other in self.problem.neighbours[name]):
                continue
            if control.expired:
                break
            self._clock += 1
            self._solved_at[name] = self._clock
            step, gain, size = self._flat_step(name) if name in self.problem.flat else self._nested_step(name, control)
            if gain > _NOTHING * size:
                self._accept(step, gain)
                moved = True
        return moved

    @property
    def point(self) -> Point:
        """Where it stands."""
        return Point(self.indices, self.objective)

    @property
    def scale(self) -> float:
        """The product of the models' norms, which bounds the objective."""
        return self.problem.norms[0] * self.problem.norms[1]

    def _accept(self, step: Indices, gain: float) -> None:
        self.indices = self.problem.after(self.indices, step)
        self.objective += gain
        self._clock += 1
        self._moved_at.update(dict.fromkeys(step, self._clock))

    def _flat_step(self, name: str) -> tuple[Indices, float, float]:
        """The best step of a flat group, what it gains, and the size of the numbers that the gain is a sum of."""
        problem = self.problem
        old = self.indices[name]
        cost = self.gradient.at(name, self.indices).cpu()
        new = torch.from_numpy(self.solvers.setdefault(name, WarmAssignment()).solve(cost.numpy()))
        places = (old != new).nonzero()[:, 0]
        if not len(places):
            return {}, 0.0, 0.0
        step = {name: torch.argsort(old)[new]}
        if name in problem.quadratic:
            return step, *problem.gain(self.indices, {**self.indices, name: new}, problem.keys_of[name])
        gained, lost = cost[places, new[places]], cost[places, old[places]]
        gain, size = float((gained - lost).sum()), float((gained.abs() + lost.abs()).sum())
        if gain < _DOUBTFUL * self.scale:
            gain = self.gradient.gain(name, old, new, self.indices)
        return step, gain, size

    def _nested_step(self, name: str, control: Control) -> tuple[Indices, float, float]:
        problem = self.problem
        step = best_move(problem, name, self.indices, control.threads)
        moved = {other: index for other, index in step.items() if not torch.equal(index, _still(index))}
        if not moved:
            return {}, 0.0, 0.0
        keys = tuple(dict.fromkeys(key for member in problem.families[name] for key in problem.keys_of[member]))
        return moved, *problem.gain(self.indices, problem.after(self.indices, step), keys)


def _still(index: torch.Tensor) -> torch.Tensor:
    return torch.arange(index.shape[-1]).expand_as(index)


def climb(
    problem: Problem,
    indices: Indices,
    generator: torch.Generator,
    max_sweeps: int,
    control: Control,
    solvers: dict[str, WarmAssignment] | None = None,
    known: float | None = None,
) -> Ascent:
    """Sweep in seeded orders until nothing moves.

    Returns:
        the ascent, at a point where no single group can be improved, or where ``control`` says why it stopped.
    """
    ascent = Ascent(problem, indices, {} if solvers is None else solvers, known)
    for _ in range(max_sweeps):
        order = [problem.moved[k] for k in torch.randperm(len(problem.moved), generator=generator).tolist()]
        moved = ascent.sweep(order, control)
        control.report(ascent.objective)
        if control.expired:
            break
        if not moved:
            control.converged = True
            break
    return ascent


@dataclass(frozen=True)
class CoordinateAscent:
    """One group after the other in seeded orders, until none can be improved (Git Re-Basin, Algorithm 1).

    Args:
        max_sweeps: an upper bound for each ascent.
        restarts: how many orders are tried; the best one is kept.
    """

    max_sweeps: int = 100
    restarts: int = 1

    def __call__(
        self,
        problem: Problem,
        start: Point,
        best: Point,
        generator: torch.Generator,
        control: Control,
        solvers: dict[str, WarmAssignment] | None = None,
    ) -> Point:
        """The best ascent's end: see :class:`Method`."""
        found = [
            climb(problem, start.indices, generator, self.max_sweeps, control, solvers, start.objective)
            for _ in range(self.restarts)
        ]
        return max((ascent.point for ascent in found), key=lambda point: point.objective)
