"""The weight matching problem: maximise the inner product of a reference and a permuted candidate.

Git Re-Basin, section 3.2: minimising the distance between the reference A and the permuted candidate, |A - pi(B)|^2, is
maximising ``<vec(A), vec(pi(B))>``, since permuting changes no norm. All tensors that vote are dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.errors import MatchingError
from fedrebasin.matching.prepared import Prepared, dot, scaled
from fedrebasin.memory import LARGE
from fedrebasin.spec import Axis, Permutation, PermutationSpec
from fedrebasin.state import State, cosines_by_layer, demand_numbers, demand_same_kinds

Indices = dict[str, Tensor]

# Turned copies of convolutions are kept up to this many bytes in all.
_TURNED_BYTES = 2**28


class Term(NamedTuple):
    """One axis of one tensor in which a group votes; ``others`` are the other dimensions that groups move."""

    key: str
    axis: Axis
    others: tuple[int, ...]


class Problem:
    """Two models and a spec, checked once and laid out for the methods.

    Args:
        spec: bound to both.
        reference: A.
        candidate: B.

    Attributes:
        keys: the voting tensors that some group moves.
        moved: the groups that are not frozen and vote somewhere.
        flat: the groups whose cost matrix is a plain sum over terms: not nested, every tensor of theirs moved by one
            index per dimension.
        terms: for each flat group, its terms.
        exponent: values of the objective are those of the models given, divided by two to this power: very large and
            very small weights are matched at another scale.
        quadratic: the groups that lie on two dimensions of one tensor, so that their cost depends on themselves.
        nested: whether some group that moves lies in the blocks of another one.
        neighbours: for each group, the groups whose movement can change its cost.

    Raises:
        SpecError: if the spec does not fit.
        MatchingError: if a weight that votes is not finite.
    """

    def __init__(self, spec: PermutationSpec, reference: State, candidate: State) -> None:
        self.spec = spec.bind(reference)
        self.spec.bind(candidate)
        for state in (reference, candidate):
            demand_numbers(state, MatchingError)
        demand_same_kinds(reference, candidate, MatchingError)
        voting = spec.voting(reference)
        self.reference = Prepared(reference, voting, "reference")
        self.candidate = Prepared(candidate, voting, "candidate", like=self.reference)
        if self.reference.ranges_widely or self.candidate.ranges_widely:
            self.reference.widen()
            self.candidate.widen()
        self.norms = (self.reference.norm, self.candidate.norm)
        self.exponent = -self.reference.exponent - self.candidate.exponent
        self._lay_out(voting)

    def restricted(self, keys: Iterable[str]) -> Problem:
        """The same models, only these tensors voting."""
        fewer = copy(self)
        fewer._lay_out(tuple(keys))
        return fewer

    # -- structure -------------------------------------------------------------------------------------------------

    def _lay_out(self, voting: Sequence[str]) -> None:
        self._turned: dict[Term, tuple[Tensor, Tensor]] = {}
        self._room = _TURNED_BYTES
        self.axes: dict[str, list[tuple[str, Axis]]] = {key: [] for key in voting}
        for group in self.spec.outermost_first:
            for axis in group.axes:
                if axis.key in self.axes:
                    self.axes[axis.key].append((group.name, axis))
        self.keys = tuple(key for key in voting if self.axes[key])
        self.keys_of = {
            name: tuple(dict.fromkeys(axis.key for axis in group.axes if axis.key in self.axes))
            for name, group in self.spec.groups.items()
        }
        self.moved = tuple(name for name, g in self.spec.groups.items() if not g.frozen and self.keys_of[name])
        self.families = {name: self._family(name) for name in self.spec.groups}
        self._simple = {key: self._is_simple(key) for key in self.keys}
        self.flat = frozenset(name for name in self.moved if all(self._simple[key] for key in self.keys_of[name]))
        self.terms = {name: self._terms(name) for name in self.flat}
        self.nested = any(self.spec.groups[name].parent is not None for name in self.moved)
        self.quadratic = frozenset(name for name in self.spec.groups if self._is_quadratic(name))
        self.neighbours = {name: self._neighbours(name) for name in self.moved}
        self._still = {key: self._inner_product(key, {}) for key in voting if not self.axes[key]}

    def _family(self, name: str) -> tuple[str, ...]:
        """The group and all groups inside its units."""
        inner = (self._family(child.name) for child in self.spec.children(name))
        return (name, *(member for family in inner for member in family))

    def _is_simple(self, key: str) -> bool:
        """Whether one index vector per dimension says how the tensor is permuted."""
        plain = [axis.dim for name, axis in self.axes[key] if axis.layout is None and not self.spec.children(name)]
        if len(plain) == len(self.axes[key]) == len(set(plain)):
            return True
        seen: dict[int, Tensor] = {}
        for name, axis in self.axes[key]:
            group = self.spec.groups[name]
            if group.parent is not None or self.spec.children(name):
                return False
            if not axis.lies_on_one_dimension:
                return False
            count = seen.setdefault(axis.dim, torch.zeros(self.spec.sizes(key)[axis.dim], dtype=torch.int8))
            axis.alone().write(count, axis.alone().view(count) + 1)
        return all(bool((count <= 1).all()) for count in seen.values())

    def _terms(self, name: str) -> tuple[Term, ...]:
        terms = []
        for key in self.keys_of[name]:
            dims = sorted({axis.dim for _, axis in self.axes[key]})
            terms += [
                Term(key, axis, tuple(dim for dim in dims if dim != axis.dim))
                for owner, axis in self.axes[key]
                if owner == name
            ]
        return tuple(terms)

    def _is_quadratic(self, name: str) -> bool:
        dims = [(axis.key, axis.dim) for axis in self.spec.groups[name].axes if axis.key in self.axes]
        return len({key for key, _ in dims}) < len(set(dims))

    def _neighbours(self, name: str) -> frozenset[str]:
        family = {name, *self.families[name], *(group.name for group in self.spec.ancestors(name))}
        keys = {key for member in family for key in self.keys_of[member]}
        found = family | {other for key in keys for other, _ in self.axes[key]}
        return frozenset(found if name in self.quadratic or len(family) > 1 else found - {name})

    def turned(self, term: Term) -> tuple[Tensor, Tensor] | None:
        """Both models' tensor of a convolution in which a unit's entries lie together; None for other terms.

        Returns:
            shape (n, the other dimension that moves, the rest) each; kept, since it is asked for in every sweep, as
            long as there is room.
        """
        if term.axis.layout is not None or len(term.others) != 1 or self.reference[term.key].dim() < 3:
            return None
        if term not in self._turned:
            needed = 2 * self.reference[term.key].nbytes
            if needed > self._room:
                return None
            self._room -= needed
            order = (term.axis.dim, *term.others)
            a, b = (state[term.key].movedim(order, (0, 1)).contiguous() for state in (self.reference, self.candidate))
            self._turned[term] = a, b
        return self._turned[term]

    # -- the objective ---------------------------------------------------------------------------------------------

    def permuted(self, key: str, indices: Mapping[str, Tensor]) -> Tensor:
        """The candidate's tensor under a permutation, as :meth:`Permutation.apply` would make it."""
        tensor = self.candidate[key]
        if self._simple[key]:
            for dim in sorted({axis.dim for _, axis in self.axes[key]}):
                index = self.along(key, dim, indices)
                if not torch.equal(index, torch.arange(len(index), device=index.device)):
                    tensor = tensor.index_select(dim, index)
            return tensor
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        for name, axis in self.axes[key]:
            axis.move(tensor, indices[name])
        return tensor

    def along(self, key: str, dim: int, indices: Mapping[str, Tensor]) -> Tensor:
        """The index that permutes dimension ``dim`` of a tensor on which groups lie one per entry."""
        axes = [(name, axis) for name, axis in self.axes[key] if axis.dim == dim]
        device = self.candidate[key].device
        if len(axes) == 1 and axes[0][1].layout is None:
            return indices[axes[0][0]].to(device)
        index = torch.arange(self.candidate[key].shape[dim])
        for name, axis in axes:
            axis.alone().move(index, indices[name])
        return index.to(device)

    def objective(self, indices: Mapping[str, Tensor]) -> float:
        """``<A, pi(B)>``, added up in float64, over all voting tensors."""
        return sum(self.inner_products(indices).values())

    def inner_products(self, indices: Mapping[str, Tensor]) -> dict[str, float]:
        """``<A, pi(B)>`` of every voting tensor; together they are the objective."""
        return {**self._still, **{key: self._inner_product(key, indices) for key in self.keys}}

    def own_products(self) -> dict[str, float]:
        """``<A, A>`` of every voting tensor: the inner products with an exact copy."""
        return {key: scaled(found.norm, self.reference.exponent) ** 2 for key, found in self.reference.totals.items()}

    def gain(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor], keys: Sequence[str]) -> tuple[float, float]:
        """What these tensors add to the objective on the way to another point, and the size of what is added up.

        Entry by entry, in float64: small entries that move are not lost beside large ones that stay.
        """
        gain = size = 0.0
        for key in keys:
            for (ours, before), (_, after) in zip(self.pieces(key, old), self.pieces(key, new), strict=True):
                moved = (after.double() - before).mul_(ours)
                gain, size = gain + float(moved.sum()), size + float(moved.abs_().sum())
        return gain, size

    def _inner_product(self, key: str, indices: Mapping[str, Tensor]) -> float:
        return sum(dot(ours.flatten(), moved.flatten()) for ours, moved in self.pieces(key, indices))

    def pieces(self, key: str, indices: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The reference's tensor and the permuted candidate's, the large ones a few rows at a time."""
        ours = self.reference[key]
        if ours.numel() <= LARGE or (self.axes[key] and not self._simple[key]):
            yield ours, self.permuted(key, indices) if self.axes[key] else self.candidate[key]
            return
        index = {dim: self.along(key, dim, indices) for dim in {axis.dim for _, axis in self.axes[key]}}
        places = torch.arange(len(ours), device=ours.device)
        for rows in torch.split(places, max(1, LARGE * len(ours) // ours.numel())):
            moved = self.candidate[key].index_select(0, index[0][rows] if 0 in index else rows)
            for dim in index.keys() - {0}:
                moved = moved.index_select(dim, index[dim])
            yield ours[rows[0] : rows[-1] + 1], moved

    def similarity(self, objective: float) -> float:
        """The cosine that belongs to a value of the objective."""
        a, b = self.norms
        if a == 0 or b == 0:
            return 1.0 if a == b else 0.0
        return max(-1.0, min(1.0, objective / a / b))

    def by_layer(self, products: Mapping[str, float]) -> dict[str, float]:
        """The cosine of every layer, from :meth:`inner_products`; see :class:`Alignment`."""
        a, b = (
            {key: scaled(found.norm, state.exponent) for key, found in state.totals.items()}
            for state in (self.reference, self.candidate)
        )
        return cosines_by_layer(products, a, b)

    # -- points ----------------------------------------------------------------------------------------------------

    def start(self, init: Permutation | None) -> Indices:
        """The indices to begin with; identity without an initial permutation."""
        identity = Permutation.identity(self.spec)
        if init is None:
            return dict(identity)
        if any(name not in init or init[name].shape != identity[name].shape for name in identity):
            raise MatchingError("init: the permutation to start from belongs to another spec")
        return {name: identity[name] if group.frozen else init[name] for name, group in self.spec.groups.items()}

    def after(self, indices: Indices, step: Indices) -> Indices:
        """The indices of first ``indices``, then a step that moves some groups."""
        if all(name in self.flat for name in step):
            return {**indices, **{name: indices[name][index] for name, index in step.items()}}
        identity = Permutation.identity(self.spec)
        whole = Permutation(self.spec, {**identity, **step})
        return dict(whole.compose(Permutation(self.spec, indices)).indices)
