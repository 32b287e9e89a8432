"""The cost matrices of flat groups at a moving point, updated only where the point moved.

The objective is linear in each group, so its cost matrix ``C[i, j]`` (what unit j of the candidate is worth in place i)
is its gradient with respect to the group's permutation matrix: one matrix product per axis. When a neighbouring group
moves m of its n units, the products over the other n - m units stay: only the difference is multiplied.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedrebasin.matching.problem import Problem, Term
from fedrebasin.memory import LARGE

# Cost matrices up to this many bytes in all are kept up to date; of more, the ones used last.
_KEPT_BYTES = 2**29
# Where more units than this share moved, those that did not add zeros: copying the others costs more than that.
_NEARLY_ALL = 0.9


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
        return self._kept(name)

    def _kept(self, name: str) -> Tensor:
        """The matrix, noted as the last one used; those used long ago make room."""
        cost = self._cost[name] = self._cost.pop(name)
        while len(self._cost) > 1 and sum(matrix.nbytes for matrix in self._cost.values()) > _KEPT_BYTES:
            oldest = next(iter(self._cost))
            del self._cost[oldest]
            for number in range(len(self._problem.terms[oldest])):
                del self._seen[oldest, number]
        return cost

    def _product(self, term: Term, index: Mapping[int, Tensor]) -> Tensor:
        if turned := self._problem.turned(term):
            a, b = turned
            return a.flatten(1) @ b.index_select(1, index[term.others[0]]).flatten(1).mT
        if self._in_pieces(term):
            return _sum(_units(term, a) @ _units(term, b).mT for a, b in self._pieces(term, index))
        return _units(term, self._problem.reference[term.key]) @ self._candidate(term, index).mT

    def _in_pieces(self, term: Term) -> bool:
        """Whether the tensor is so large that no copy of it is to be made."""
        return len(term.others) > 0 and self._problem.reference[term.key].numel() > LARGE

    def _pieces(
        self, term: Term, index: Mapping[int, Tensor], some: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The reference and the candidate with its other dimensions permuted, a part of one of these at a time.

        Args:
            term: of a large tensor.
            index: for every other dimension of the term.
            some: the positions to go through along the first other dimension; None for all.
        """
        reference, candidate = self._problem.reference[term.key], self._problem.candidate[term.key]
        dim, *rest = term.others
        positions = torch.arange(reference.shape[dim], device=reference.device) if some is None else some
        for where in torch.split(positions, max(1, LARGE * reference.shape[dim] // reference.numel())):
            moved = candidate.index_select(dim, index[dim][where])
            for other in rest:
                moved = moved.index_select(other, index[other])
            yield reference.index_select(dim, where), moved

    def _difference(
        self, term: Term, now: Mapping[int, Tensor], then: Mapping[int, Tensor], changed: Mapping[int, Tensor]
    ) -> Tensor:
        reference = self._problem.reference[term.key]
        if len(changed) == 1:
            ((dim, where),) = changed.items()
            if dim == term.others[0] and self._in_pieces(term) and not self._problem.turned(term):
                pairs = zip(self._pieces(term, now, where), self._pieces(term, then, where), strict=True)
                return _sum(_units(term, a) @ _units(term, b.sub_(old)).mT for (a, b), (_, old) in pairs)
            if turned := self._problem.turned(term):
                a, b = turned
                new, old = now[dim], then[dim]
                if len(where) < _NEARLY_ALL * len(new):
                    a, new, old = a.index_select(1, where), new[where], old[where]
                moved = b.index_select(1, new).sub_(b.index_select(1, old))
                return a.flatten(1) @ moved.flatten(1).mT
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
            if self._in_pieces(term):
                parts, pairs = [places], self._pieces(term, others)
                others = {}
            else:
                parts = list(torch.split(places, max(1, LARGE * len(old) // reference.numel())))
                pairs = iter([(reference, candidate)])
            for ours, theirs in pairs:
                for part in parts:
                    a = _rows(term, ours, part.to(device), {})
                    b_new = _rows(term, theirs, new[part].to(device), others)
                    b_old = _rows(term, theirs, old[part].to(device), others)
                    total += float(b_new.double().sub_(b_old).mul_(a).sum())
        return total


def _sum(parts: Iterator[Tensor]) -> Tensor:
    """The sum of matrices, in float64."""
    total = next(parts).double()
    for part in parts:
        total += part
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
