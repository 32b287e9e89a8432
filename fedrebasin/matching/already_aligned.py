"""Skipping the assignment where it provably changes nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrebasin.errors import MatchingError
from fedrebasin.matching.alignment import Alignment, History, Matcher
from fedrebasin.matching.prepared import as_real
from fedrebasin.spec import Axis, Permutation, PermutationSpec
from fedrebasin.state import State, cosine_of, cosines_by_layer, demand_numbers, demand_same_kinds

#: Entries of each unit that a first, cheap bound on the units' distances is taken from.
FEW = 128


@dataclass
class AlreadyAligned:
    """A matcher for many candidates and one reference, which leaves alone what needs no matching.

    If every unit of the candidate lies closer to its own counterpart than half the distance from that one to the next,
    ``|b_i - a_i| < min_j |a_i - a_j| / 2``, then ``|b_i - a_i| < |b_i - a_j|`` for all j, and no assignment has smaller
    squared distances than the identity: it is a fixed point of coordinate ascent. A model trained for a few epochs from
    the reference passes; then matching costs little more than reading the model once.

    Over some of the entries ``|a_i - a_j|`` is at most what it is over all of them: a bound from a few entries is tried
    first, and all pairs of units are compared in full only if a candidate fails it.

    Nothing is claimed for groups inside blocks, or that index two axes of one tensor, whose cost is no assignment's:
    there the matcher runs.

    Args:
        matcher: for the candidates that are not aligned already.
    """

    matcher: Matcher
    _known: _Reference | None = field(default=None, repr=False)

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Align a candidate: see :class:`fedrebasin.matching.Matcher`."""
        close = self.closeness(spec, reference, candidate)
        return self.matcher(spec, reference=reference, candidate=candidate) if close is None else close

    def closeness(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment | None:
        """The alignment of a candidate whose units provably stay where they are; None where that cannot be said.

        Raises:
            SpecError: if the spec does not fit one of the models.
        """
        spec = spec.bind(candidate)
        for state in (reference, candidate):
            demand_numbers(state, MatchingError)
        demand_same_kinds(reference, candidate, MatchingError)
        return self.near(spec, reference, candidate)

    def near(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment | None:
        """As :meth:`closeness`, of models that are known to fit the spec and one another."""
        started = time.perf_counter()
        known = self._known  # one name for both: another thread may be at work with another reference
        if known is None or known.state is not reference:
            try:
                known = self._known = _Reference(spec.bind(reference), reference)
            except (RuntimeError, NotImplementedError):  # a tensor without values, say: the matcher says which
                return None
        if (close := known.closeness(candidate)) is None:
            return None
        similarity, distance, by_layer = close
        history = History((), time.perf_counter() - started, True, "every unit is nearest to its own")
        return Alignment(known.stays, similarity, history, by_layer, distance)


class _Reference:
    """What is known of a reference: by group, how far a unit may be away and still be nearest to its own."""

    def __init__(self, spec: PermutationSpec, state: State) -> None:
        self.state = state
        self.stays = Permutation.identity(spec)
        self._keys = spec.voting(state)
        self._squares = {key: _square(as_real(state[key])) for key in self._keys}
        self._axes: dict[str, list[Axis]] = {}
        self._provable = True
        for name, group in spec.groups.items():
            if group.frozen:
                continue
            axes = [axis for axis in group.axes if axis.key in self._keys]
            repeated = max(Counter(axis.key for axis in axes).values(), default=0) > 1
            self._provable &= group.parent is None and not repeated
            self._axes[name] = axes
        self._by_key: dict[str, list[tuple[str, Axis]]] = {key: [] for key in self._keys}
        for name, axes in self._axes.items():
            for axis in axes:
                self._by_key[axis.key].append((name, axis))
        self._radii: dict[int, dict[str, Tensor]] = {}

    def closeness(self, candidate: State) -> tuple[float, float, dict[str, float]] | None:
        """The cosine, the distance and the cosines by layer of a candidate that is close enough."""
        if not self._provable:
            return None
        away: dict[str, Tensor] = {}
        theirs: dict[str, float] = {}
        apart: dict[str, float] = {}
        for key in self._keys:
            a, b = as_real(self.state[key]).float(), as_real(candidate[key]).float()
            theirs[key] = _square(b)
            squares = torch.sub(a, b).square_()
            shares = [(name, _by_unit(axis, squares).double()) for name, axis in self._by_key[key]]
            apart[key] = float(shares[0][1].sum()) if shares else float(squares.sum())
            for name, share in shares:
                away[name] = share if name not in away else away[name] + share
        if not (self._within(away, FEW) or self._within(away, 0)):
            return None
        # 2 <a, b> = |a|^2 + |b|^2 - |a - b|^2
        products = {key: (square + theirs[key] - apart[key]) / 2 for key, square in self._squares.items()}
        norms = [{key: math.sqrt(square) for key, square in found.items()} for found in (self._squares, theirs)]
        distance = math.sqrt(sum(apart.values()))
        if not math.isfinite(distance):
            return None
        return cosine_of(products, *norms), distance, cosines_by_layer(products, *norms)

    def _within(self, away: dict[str, Tensor], entries: int) -> bool:
        if entries not in self._radii:
            self._radii[entries] = {name: self._radius(axes, entries) for name, axes in self._axes.items() if axes}
        return all(bool((away[name] < radius).all()) for name, radius in self._radii[entries].items())

    def _radius(self, axes: list[Axis], entries: int) -> Tensor:
        """A lower bound on a quarter of the squared distance from each unit to the nearest other one.

        Args:
            axes: of the group.
            entries: about how many of each unit to look at; 0 for all, which makes the bound exact.
        """
        views = [axis.view(as_real(self.state[axis.key]).contiguous()) for axis in axes]
        step = max(1, sum(view[0].numel() for view in views) // entries) if entries else 1
        gram: Tensor | None = None
        for view in views:
            chosen = view[:, ::step] if view.dim() > 1 else view[:, None]
            units = chosen.reshape(len(view), -1).float()
            product = (units @ units.T).double()
            gram = product if gram is None else gram + product
        assert gram is not None
        lengths = gram.diagonal()
        squares = lengths[:, None] + lengths[None, :] - 2 * gram
        squares.fill_diagonal_(torch.inf)
        # Rounding in the products must not make a unit look lonelier than it is.
        slack = 1e-5 * (lengths[:, None] + lengths[None, :]).amax(1)
        return (squares.amin(1) - slack).clamp(min=0) / 4


def _square(tensor: Tensor) -> float:
    flat = tensor.float().flatten()
    return float(torch.dot(flat, flat))


def _by_unit(axis: Axis, squares: Tensor) -> Tensor:
    """The sums over the entries of each unit."""
    if axis.layout is not None:
        view = axis.view(squares.contiguous())
        return view.sum(tuple(range(1, view.dim()))) if view.dim() > 1 else view
    # Outer dimensions first: what is left is small, and was read in the order in which it lies.
    sums = squares.sum(tuple(range(axis.dim))) if axis.dim else squares
    return sums.flatten(1).sum(1) if sums.dim() > 1 else sums
