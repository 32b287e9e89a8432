"""How a reference is chosen: the model through which the others agree best, or the one that they started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.matching import Matcher, WeightMatching
from fedrebasin.spec import Axis, Group, Permutation, PermutationSpec
from fedrebasin.state import State, cosine_matrix, demand_numbers, demand_same_kinds, gram

#: Up to so many models every one is a candidate and every one is asked.
ALL = 12
CANDIDATES, JUDGES = 8, 21
#: Units of each group that are looked at in every model.
UNITS_SAMPLED = 32


def medoid(spec: PermutationSpec, states: Sequence[State], matcher: Matcher | None = None) -> int:
    """One of the models in the middle: the one through which the others agree best with one another.

    Through it means: each matched to it, and its own agreement with them left out. A model that others cannot be told
    apart by, with units that are alike, is near to all of them and brings them in no common order. Of the candidates
    only those stand for election whose own agreement (the median cosine, each pair by its own matching) is no better
    than the median candidate's: one that agrees with everyone better than they do with one another was made of them.

    Medians, and not means, of what all are asked: a minority that agrees with itself, or is far away, cannot win.
    Cosines, and not distances: a model of tiny weights is near everything.

    Of more than 12 models 8 are candidates, and 21 (or all) are asked: at most 132 matchings, however many there are.

    Args:
        spec: bound to the models.
        states: at least one.
        matcher: of pairs (default: coordinate ascent on the weights, which is enough to tell how well they agree).

    Returns:
        its position; the first one of equals.
    """
    count = len(states)
    if count <= 2:
        return 0
    order = list(range(count))
    if count > ALL:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    candidates, judges = order[: count if count <= ALL else CANDIDATES], order[:JUDGES]
    match = WeightMatching(method="coordinate") if matcher is None else matcher
    cosines = torch.full((len(candidates), len(judges)), torch.nan)
    found: dict[tuple[int, int], Permutation] = {}
    for row, candidate in enumerate(candidates):
        for column in range(row + 1, len(judges)):
            alignment = match(spec, reference=states[candidate], candidate=states[judges[column]])
            cosines[row, column], found[row, column] = alignment.similarity, alignment.permutation
            if column < len(candidates):  # candidates are the first judges, and agreement is mutual
                cosines[column, row], found[column, row] = alignment.similarity, alignment.permutation.inverse()
    own = cosines.nan_to_num(nan=-torch.inf).sort(descending=True).values[:, (len(judges) - 2) // 2]
    standing = (own <= own.quantile(0.5)).nonzero().flatten().tolist()

    def central(row: int) -> tuple[float, float]:
        """How well the others agree through it; where they do so equally through several, its own decides."""
        others = [column for column in range(len(judges)) if column != row]
        through = _agreement(spec, [states[judges[at]] for at in others], [found[row, at] for at in others])
        return round(through, 9), float(own[row])

    return candidates[max(standing, key=central)]


def _agreement(spec: PermutationSpec, states: Sequence[State], permutations: Sequence[Permutation]) -> float:
    """How well models agree with one another, each permuted: the median of each one's median cosine to the others.

    A minority of m in 2 m + 1 leaves m - 1 others to an honest model, with the reference left out: so many have to
    agree with it, and m of the models have to be such.
    """
    keys = spec.voting(states[0])
    moves = [_by_key(permutation) for permutation in permutations]
    products = torch.zeros(len(states), len(states), dtype=torch.float64)
    for key in keys:
        moved = [{key: _moved(state[key], own.get(key, ()))} for state, own in zip(states, moves, strict=True)]
        products += gram(moved, range(len(states)), [key])
    cosines = cosine_matrix(products).fill_diagonal_(-torch.inf)
    minority = len(states) // 2
    each = cosines.sort(dim=1, descending=True).values[:, max(minority - 2, 0)]
    return float(each.sort(descending=True).values[max(minority - 1, 0)])


def _by_key(permutation: Permutation) -> dict[str, list[tuple[Axis, Tensor]]]:
    """The moves of a permutation, in order, by the key of the tensor."""
    found: dict[str, list[tuple[Axis, Tensor]]] = {}
    for axis, index in permutation.moves():
        found.setdefault(axis.key, []).append((axis, index))
    return found


def _moved(tensor: Tensor, moves: Sequence[tuple[Axis, Tensor]]) -> Tensor:
    if moves:
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    for axis, index in moves:
        axis.move(tensor, index)
    return tensor


def started_from(spec: PermutationSpec, start: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether most of the models still have their units in the order of ``start``.

    A model trained from ``start`` keeps its units recognisable: unit i resembles the start's unit i more than any other
    unit does. A model with its own initialisation does so by chance only, one time in n. The answer is yes where the
    median model is nearer to the first than to the second; a minority of the models cannot change it.

    Args:
        spec: the permutation spec, which names the units.
        start: a state dict.
        states: state dicts of the same form.

    Raises:
        MergeError: if there are no models, or entries without numbers.
        SpecError: if the spec does not fit.
    """
    if not states:
        raise MergeError("no models to compare with the start: give at least one state dict")
    spec = spec.bind(start)
    for state in (start, *states):
        spec.bind(state)
        demand_numbers(state)
        demand_same_kinds(start, state)
    voting = set(spec.voting(start))
    groups = [
        replace(group, axes=tuple(axis for axis in group.axes if axis.key in voting)) for group in spec.groups.values()
    ]
    landmarks = [found for group in groups if (found := _landmarks(spec, group, start)) is not None]
    return median(_share_in_place(landmarks, spec.bind(state), state) for state in states) > 0.5


@dataclass(frozen=True)
class _Landmarks:
    """The start's units of one group, against which a few units of each model are held.

    Args:
        group: whose units, with the axes that vote.
        depth: how many dimensions the group's index has.
        sampled: positions of the units that are looked at.
        units: unit vectors, shape (units, entries); what all units share (a scale of ones) says nothing and is removed.
        shared: what was removed, shape (entries,).
    """

    group: Group
    depth: int
    sampled: Tensor
    units: Tensor
    shared: Tensor


def _landmarks(spec: PermutationSpec, group: Group, start: Mapping[str, Tensor]) -> _Landmarks | None:
    shape = spec.shape(group.name)
    count = math.prod(shape)
    if count < 2 or not group.axes:
        return None
    sampled = torch.linspace(0, count - 1, min(count, UNITS_SAMPLED)).round().long()
    vectors = torch.cat([_rows(axis, start, len(shape), None) for axis in group.axes], dim=1)
    shared = vectors.mean(dim=0)
    units = torch.nn.functional.normalize(vectors - shared, dim=1)
    return _Landmarks(group, len(shape), sampled, units, shared)


def _share_in_place(landmarks: Sequence[_Landmarks], spec: PermutationSpec, state: Mapping[str, Tensor]) -> float:
    """The share of units most like their own counterpart, scaled so that 0 is chance and 1 is all of them."""
    excess, possible = 0.0, 0.0
    for mark in landmarks:
        rows = torch.cat([_rows(axis, state, mark.depth, mark.sampled) for axis in mark.group.axes], dim=1)
        nearest = ((rows - mark.shared) @ mark.units.T).argmax(dim=1).cpu()
        hits, chance = int((nearest == mark.sampled).sum()), len(mark.sampled) / len(mark.units)
        excess += hits - chance
        possible += len(mark.sampled) - chance
    return excess / possible if possible else 0.0


def _rows(axis: Axis, state: Mapping[str, Tensor], depth: int, chosen: Tensor | None) -> Tensor:
    """The entries of a group's units along one axis, all or chosen ones: shape (units, entries)."""
    view = axis.view(state[axis.key] if axis.layout is None else state[axis.key].contiguous())
    if chosen is not None and depth == 1:
        view, chosen = view.index_select(0, chosen.to(view.device)), None
    rows = view.reshape(math.prod(view.shape[:depth]), -1)
    rows = torch.view_as_real(rows.resolve_conj()).flatten(1).float() if rows.is_complex() else rows.float()
    return rows if chosen is None else rows[chosen.to(rows.device)]
