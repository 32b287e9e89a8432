"""Skipping the assignment where it provably changes nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrebasin.matching.alignment import Alignment, Matcher, State, Trace
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec


@dataclass
class AlreadyAligned:
    """A matcher for many candidates and one reference, which leaves alone what needs no matching.

    If every unit of the candidate lies closer to its own counterpart than half the distance from that one to the next,
    ``|b_i - a_i| < min_j |a_i - a_j| / 2``, then ``|b_i - a_i| < |b_i - a_j|`` for all j, and no assignment has smaller
    squared distances than the identity: it is a fixed point of coordinate ascent. A model trained for a few epochs from
    the reference passes; then matching costs little more than reading the model once.

    Nothing is claimed for groups inside blocks, or that index two axes of one tensor, whose cost is no assignment's:
    there the matcher runs.

    Args:
        matcher: for the candidates that are not aligned already.
    """

    matcher: Matcher
    _reference: State | None = field(default=None, repr=False)
    _radii: dict[str, Tensor] | None = field(default=None, repr=False)

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Align a candidate: see :class:`fedrebasin.matching.Matcher`."""
        started = time.perf_counter()
        spec = spec.bind(candidate)
        if self._reference is not reference:
            self._reference, self._radii = reference, _radii(spec.bind(reference), reference)
        similarity = None if self._radii is None else _similarity(spec, reference, candidate, self._radii)
        if similarity is None:
            return self.matcher(spec, reference=reference, candidate=candidate)
        trace = Trace((), time.perf_counter() - started, True, "every unit is nearest to its own")
        return Alignment(Permutation.identity(spec), similarity, trace)


def _votes(spec: PermutationSpec, key: str, state: State) -> bool:
    return key not in spec.statistics and state[key].is_floating_point()


def _radii(spec: PermutationSpec, reference: State) -> dict[str, Tensor] | None:
    """By group, half the squared distance (so: a quarter of the square) from each unit to the nearest other one."""
    radii = {}
    for name, group in spec.groups.items():
        axes = [axis for axis in group.axes if _votes(spec, axis.key, reference)]
        if group.frozen:
            continue
        if group.parent is not None or max(Counter(axis.key for axis in axes).values(), default=0) > 1:
            return None
        if not axes:
            continue
        gram: Tensor | None = None
        for axis in axes:
            units = axis.units(reference[axis.key]).float()
            product = (units @ units.T).double()
            gram = product if gram is None else gram + product
        assert gram is not None
        lengths = gram.diagonal()
        squares = lengths[:, None] + lengths[None, :] - 2 * gram
        squares.fill_diagonal_(torch.inf)
        # Rounding in the products must not make a unit look lonelier than it is.
        slack = 1e-5 * (lengths[:, None] + lengths[None, :]).amax(1)
        radii[name] = (squares.amin(1) - slack).clamp(min=0) / 4
    return radii


def _similarity(spec: PermutationSpec, reference: State, candidate: State, radii: dict[str, Tensor]) -> float | None:
    """The cosine of the two models if no unit has to move, else None."""
    away: dict[str, Tensor] = {}
    inner, ours, theirs = 0.0, 0.0, 0.0
    by_key: dict[str, list[tuple[str, int]]] = {}
    for name in radii:
        for position, axis in enumerate(spec.groups[name].axes):
            by_key.setdefault(axis.key, []).append((name, position))
    for key in spec.shapes:
        if not _votes(spec, key, reference):
            continue
        a, b = reference[key].float(), candidate[key].float()
        inner += float(torch.dot(a.flatten(), b.flatten()))
        ours += float(torch.dot(a.flatten(), a.flatten()))
        theirs += float(torch.dot(b.flatten(), b.flatten()))
        squares = torch.sub(a, b).square_()
        for name, position in by_key.get(key, []):
            share = spec.groups[name].axes[position].units(squares).sum(1).double()
            away[name] = share if name not in away else away[name] + share
    for name, radius in radii.items():
        if not bool((away[name] < radius).all()):
            return None
    length = (ours * theirs) ** 0.5
    return min(1.0, inner / length) if length else 1.0
