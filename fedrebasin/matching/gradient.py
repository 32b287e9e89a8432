"""The cost matrices of flat groups at a moving point, updated only where the point moved.

The objective is linear in each group, so its cost matrix ``C[i, j]`` (what unit j of the candidate is worth in place i)
is its gradient with respect to the group's permutation matrix: one matrix product per axis. When a neighbouring group
moves m of its n units, the products over the other n - m units stay: only the difference is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedrebasin.matching.problem import Problem, Term


class Gradient:
    """Cost matrices of one problem, each brought up to date when it is asked for.

    Columns are numbered as in the candidate that was given, whatever its permutation: ``C[i, j]`` stays the same when
    the group itself moves, unless the group is quadratic.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._cost: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, int], dict[int, Tensor]] = {}

    def at(self, name: str, indices: Mapping[str, Tensor]) -> Tensor:
        """The cost matrix of a flat group at this point: shape (n, n), float64, not to be written to."""
        problem = self._problem
        terms = problem.terms[name]
        if name not in self._cost:
            (size,) = problem.spec.shape(name)
            device = problem.reference[terms[0].key].device
            self._cost[name] = torch.zeros(size, size, dtype=torch.float64, device=device)
        for number, term in enumerate(terms):
            now = {dim: problem.along(term.key, dim, indices) for dim in term.others}
            then = self._seen.get((name, number))
            if then is None:
                self._cost[name] += self._product(term, now)
            elif changed := {dim: (now[dim] != then[dim]).nonzero()[:, 0] for dim in now}:
                changed = {dim: where for dim, where in changed.items() if len(where)}
                if changed:
                    self._cost[name] += self._difference(term, now, then, changed)
            self._seen[name, number] = now
        return self._cost[name]

    def _product(self, term: Term, index: Mapping[int, Tensor]) -> Tensor:
        if turned := self._problem.turned(term):
            a, b = turned
            return a.flatten(1) @ b.index_select(1, index[term.others[0]]).flatten(1).mT
        return _units(term, self._problem.reference[term.key]) @ self._candidate(term, index).mT

    def _difference(
        self, term: Term, now: Mapping[int, Tensor], then: Mapping[int, Tensor], changed: Mapping[int, Tensor]
    ) -> Tensor:
        reference = self._problem.reference[term.key]
        if len(changed) == 1:
            ((dim, where),) = changed.items()
            if turned := self._problem.turned(term):
                a, b = turned
                moved = b.index_select(1, now[dim][where]).sub_(b.index_select(1, then[dim][where]))
                return a.index_select(1, where).flatten(1) @ moved.flatten(1).mT
            reference = reference.index_select(dim, where)
            now, then = {**now, dim: now[dim][where]}, {**then, dim: then[dim][where]}
        return _units(term, reference) @ (self._candidate(term, now) - self._candidate(term, then)).mT

    def _candidate(self, term: Term, index: Mapping[int, Tensor]) -> Tensor:
        tensor = self._problem.candidate[term.key]
        for dim, where in index.items():
            tensor = tensor.index_select(dim, where)
        return _units(term, tensor)

    def gain(self, name: str, old: Tensor, new: Tensor, indices: Mapping[str, Tensor]) -> float:
        """What moving a group from index ``old`` to ``new`` adds to the objective, in float64 from the weights."""
        places = (old != new).nonzero()[:, 0]
        total = 0.0
        for term in self._problem.terms[name]:
            others = {dim: self._problem.along(term.key, dim, indices) for dim in term.others}
            reference, candidate = self._problem.reference[term.key], self._problem.candidate[term.key]
            device = reference.device
            a = _rows(term, reference, places.to(device), {})
            b_new = _rows(term, candidate, new[places].to(device), others)
            b_old = _rows(term, candidate, old[places].to(device), others)
            total += float((a.double() * (b_new.double() - b_old.double())).sum())
        return total


def _units(term: Term, tensor: Tensor) -> Tensor:
    """The term's units of a tensor as rows: a view where the tensor allows it."""
    return term.axis.units(tensor)


def _rows(term: Term, tensor: Tensor, units: Tensor, others: Mapping[int, Tensor]) -> Tensor:
    """Some of the term's units, the other dimensions permuted."""
    if term.axis.layout is None:
        tensor = tensor.index_select(term.axis.dim, units)
    for dim, where in others.items():
        tensor = tensor.index_select(dim, where)
    if term.axis.layout is None:
        return _units(term, tensor)
    return _units(term, tensor).index_select(0, units)
