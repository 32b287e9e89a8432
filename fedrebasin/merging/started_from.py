"""Whether models were trained from a given one: measured, not declared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.group import Group
from fedrebasin.spec import PermutationSpec

UNITS_SAMPLED = 64


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
        MergeError: if there are no models.
        SpecError: if the spec does not fit.
    """
    if not states:
        raise MergeError("no models to compare with the start: give at least one state dict")
    spec = spec.bind(start)
    return median(_share_in_place(spec, start, state) for state in states) > 0.5


def _share_in_place(spec: PermutationSpec, start: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> float:
    """The share of units most like their own counterpart, scaled so that 0 is chance and 1 is all of them."""
    excess, possible = 0.0, 0.0
    for group in spec.groups.values():
        count = math.prod(spec.shape(group.name))
        if count < 2:
            continue
        sampled = torch.linspace(0, count - 1, min(count, UNITS_SAMPLED)).round().long()
        ours, theirs = (_units(spec, group, model) for model in (start, state))
        if ours is None or theirs is None:
            continue
        nearest = (ours[sampled] @ theirs.T).argmax(dim=1).cpu()
        hits, chance = int((nearest == sampled).sum()), len(sampled) / count
        excess += hits - chance
        possible += len(sampled) - chance
    return excess / possible if possible else 0.0


def _units(spec: PermutationSpec, group: Group, state: Mapping[str, Tensor]) -> Tensor | None:
    """Unit vectors of shape (units, entries); what all units share (a scale of ones) says nothing and is removed."""
    shape = spec.shape(group.name)
    rows = [
        axis.units(state[axis.key], len(shape)).reshape(math.prod(shape), -1).float()
        for axis in group.axes
        if axis.key not in spec.statistics and state[axis.key].is_floating_point()
    ]
    if not rows:
        return None
    vectors = torch.cat(rows, dim=1)
    return torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
