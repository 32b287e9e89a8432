"""Frank-Wolfe for many models at once: every model's groups are relaxed towards one common order.

C2M3 (Crisostomi et al. 2024), section 3: maximise the sum of ``w_i w_j <P_i theta_i, P_j theta_j>`` over pairs. A
relaxed model is never computed by dense products: when all points move to ``(1 - t) P + t S`` the relaxed tensors are
combinations of ones that are known and ones that index vectors make. Along the segment the objective is a polynomial of
degree four, whose maximum is found exactly.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedrebasin.matching import Control, Indices, Problem, WarmAssignment, relaxable
from fedrebasin.spec import Permutation
from fedrebasin.threads import in_threads

# A step that adds less than this share of all that was added so far ends the search.
_LITTLE = 1e-5


class RelaxedModel:
    """One model at a point of the relaxation: its tensors with no, one or both of their dimensions relaxed.

    Args:
        problem: a weight matching problem with this model as its candidate.
        names: the groups that are relaxed.
    """

    def __init__(self, problem: Problem, names: Sequence[str]) -> None:
        self.problem = problem
        self.names = tuple(names)
        still = problem.start(None)
        self.keys = tuple(dict.fromkeys(term.key for name in names for term in problem.terms[name]))
        self.dims = {key: sorted({axis.dim for _, axis in problem.axes[key]}) for key in self.keys}
        # By the dimensions that are relaxed in it: the identity, where it starts, is the model itself.
        self.tensors = {key: dict.fromkeys(_subsets(self.dims[key]), problem.candidate[key]) for key in self.keys}
        self.points = {name: torch.eye(len(still[name])) for name in names}

    def relaxed(self, key: str) -> Tensor:
        """The tensor with all of its dimensions relaxed."""
        return self.tensors[key][tuple(self.dims[key])]

    def slopes(self, name: str, others: Mapping[str, Tensor]) -> Tensor:
        """What the units of a group are worth in each place, next to the sum of the other models: shape (n, n)."""
        total: Tensor | None = None
        for term in self.problem.terms[name]:
            rest = tuple(dim for dim in self.dims[term.key] if dim != term.axis.dim)
            mine = term.axis.units(self.tensors[term.key][rest])
            product = (term.axis.units(others[term.key]) @ mine.mT).double()
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    def directions(self, key: str, vertex: Indices) -> tuple[Tensor, Tensor]:
        """The relaxed tensor's first and second order terms on the way to a vertex."""
        here = self.relaxed(key)
        dims = self.dims[key]
        if len(dims) == 1:
            return self._gathered(key, (), dims, vertex) - here, torch.zeros_like(here)
        mixed = self._gathered(key, (dims[0],), [dims[1]], vertex) + self._gathered(key, (dims[1],), [dims[0]], vertex)
        there = self._gathered(key, (), dims, vertex)
        return mixed - 2 * here, here - mixed + there

    def _gathered(self, key: str, relaxed: tuple[int, ...], dims: Sequence[int], vertex: Indices) -> Tensor:
        tensor = self.tensors[key][relaxed]
        for dim in dims:
            tensor = tensor.index_select(dim, self.problem.along(key, dim, vertex))
        return tensor

    def step(self, vertex: Indices, size: float, directions: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Move by ``size`` in [0, 1] towards a vertex."""
        for key in self.keys:
            versions = self.tensors[key]
            full = tuple(self.dims[key])
            first, second = directions[key]
            moved = {full: versions[full] + size * first + size**2 * second, (): versions[()]}
            if len(full) == 2:
                for dim in full:
                    moved[(dim,)] = torch.lerp(versions[(dim,)], self._gathered(key, (), [dim], vertex), size)
            self.tensors[key] = moved
        for name in self.names:
            self.points[name].mul_(1 - size)
            self.points[name][torch.arange(len(vertex[name])), vertex[name]] += size


def relax_together(
    problems: Sequence[Problem], shares: Sequence[float], max_steps: int, control: Control
) -> list[Permutation]:
    """Relax all models from where they are, and round.

    Args:
        problems: one for each model, with the model as candidate; the groups that can be relaxed are the same in all.
        shares: the models' weights, which sum to one.
        max_steps: an upper bound.
        control: the time budget, after which the point reached is rounded, and the threads for the assignments.

    Returns:
        a permutation of each model to the common order; groups that cannot be relaxed stay.
    """
    names = relaxable(problems[0])
    models = [RelaxedModel(problem, names) for problem in problems]
    solvers = [{name: WarmAssignment() for name in names} for _ in models]
    jobs = [(k, name) for k in range(len(models)) for name in names]

    def best(matrices: Mapping[tuple[int, str], Tensor]) -> list[Indices]:
        def solve(job: tuple[int, str]) -> Tensor:
            return torch.from_numpy(solvers[job[0]][job[1]].solve(matrices[job].double().cpu().numpy()))

        found = [problem.start(None) for problem in problems]
        for (k, name), index in zip(jobs, in_threads(solve, jobs, control.threads), strict=True):
            found[k][name] = index
        return found

    total = 0.0
    for _ in range(max_steps):
        sums = {
            key: sum((share * model.relaxed(key) for share, model in zip(shares, models, strict=True)), torch.zeros(()))
            for key in models[0].keys
        }
        slopes: dict[tuple[int, str], Tensor] = {}
        for k, model in enumerate(models):
            others = {key: total - shares[k] * model.relaxed(key) for key, total in sums.items()}
            slopes |= {(k, name): model.slopes(name, others) for name in names}
        vertices = best(slopes)
        del slopes
        directions = [
            {key: model.directions(key, vertex) for key in model.keys}
            for model, vertex in zip(models, vertices, strict=True)
        ]
        size, gain = _exact_step(models, shares, sums, directions)
        for model, vertex, direction in zip(models, vertices, directions, strict=True):
            model.step(vertex, size, direction)
        total += gain
        if gain <= _LITTLE * total or control.expired:
            break
    rounded = best({(k, name): models[k].points[name] for k, name in jobs})
    return [Permutation(problem.spec, indices) for problem, indices in zip(problems, rounded, strict=True)]


def _exact_step(
    models: Sequence[RelaxedModel],
    shares: Sequence[float],
    sums: Mapping[str, Tensor],
    directions: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
) -> tuple[float, float]:
    """Where on the segment the objective is largest, and by how much it rises: the sum squared less the squares."""
    coefficients = np.zeros(5)
    for key, here in sums.items():
        first = sum((w * d[key][0] for w, d in zip(shares, directions, strict=True)), torch.zeros(()))
        second = sum((w * d[key][1] for w, d in zip(shares, directions, strict=True)), torch.zeros(()))
        coefficients += _square(here, first, second)
        for share, model, direction in zip(shares, models, directions, strict=True):
            coefficients -= share**2 * _square(model.relaxed(key), *direction[key])
    polynomial = np.polynomial.Polynomial(coefficients)
    turns: list[complex] = np.asarray(polynomial.deriv().roots(), dtype=np.complex128).tolist()
    inside = [turn.real for turn in turns if abs(turn.imag) < 1e-9 and 0 < turn.real < 1]
    values = {size: float(polynomial(size)) for size in (0.0, 1.0, *inside)}
    best = max(values, key=lambda size: values[size])
    return best, values[best] - values[0.0]


def _square(here: Tensor, first: Tensor, second: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The coefficients of ``|here + t first + t^2 second|^2`` by rising powers of t."""
    a, b, c = (tensor.double().flatten() for tensor in (here, first, second))
    return np.array([float(a @ a), 2 * float(a @ b), float(b @ b + 2 * a @ c), 2 * float(b @ c), float(c @ c)])


def _subsets(dims: Sequence[int]) -> list[tuple[int, ...]]:
    return [(), *((dim,) for dim in dims), tuple(dims)] if len(dims) == 2 else [(), tuple(dims)]
