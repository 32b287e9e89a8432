"""What an aligner returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.errors import MergeError, deprecated
from fedrebasin.matching import Alignment, History, State, as_real, cosines_by_layer
from fedrebasin.memory import LARGE
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import demand_numbers, demand_same_kinds


@dataclass(frozen=True)
class Merge:
    """Several models, aligned and averaged.

    Args:
        states: the aligned models, in the order given.
        alignments: how each was aligned; ``alignments[k].apply(states_given[k])`` equals ``states[k]``. Its similarity
            is the cosine to what the model was aligned to: the reference, or the mean of the models.
        merged: the weighted mean of ``states``.
        history: the objective, which never rises: the weighted mean of the squared distances of the models to the
            reference (``AlignTo``) or to their mean (the others), over all voting tensors.
    """

    states: tuple[State, ...]
    alignments: tuple[Alignment, ...]
    merged: State
    history: History

    @property
    def trace(self) -> History:
        """The name of ``history`` in 0.1."""
        deprecated("Merge.trace", "Merge.history")
        return self.history


class Vectors:
    """The voting tensors of models as vectors: inner products and distances, in float64.

    Args:
        spec: which tensors vote.
    """

    def __init__(self, spec: PermutationSpec) -> None:
        self._spec = spec

    def of(self, state: State) -> dict[str, Tensor]:
        """The tensors of a state dict that vote, in float64."""
        return {key: as_real(state[key].detach()).double() for key in self._spec.voting(state)}

    def products(self, a: State, b: State) -> dict[str, float]:
        """The inner product of every voting tensor."""
        return {key: sum(float(torch.sum(x * y)) for x, y in pieces) for key, pieces in self._pairs(a, b)}

    def inner(self, a: State, b: State) -> float:
        """``<vec(a), vec(b)>`` over the voting tensors."""
        return sum(self.products(a, b).values())

    def cosine(self, a: State, b: State) -> float:
        """The cosine of two models; 1 where both are zero."""
        return self.cosines(a, b)[0]

    def cosines(self, a: State, b: State) -> tuple[float, dict[str, float]]:
        """The cosine of two models, and that of every layer."""
        products = self.products(a, b)
        norms = [{key: math.sqrt(square) for key, square in self.products(x, x).items()} for x in (a, b)]
        lengths = [math.hypot(*found.values()) for found in norms]
        layers = cosines_by_layer(products, *norms)
        if 0 in lengths:
            return (1.0 if lengths[0] == lengths[1] else 0.0), layers
        return max(-1.0, min(1.0, sum(products.values()) / lengths[0] / lengths[1])), layers

    def squared_distance(self, a: State, b: State) -> float:
        """``|vec(a) - vec(b)|^2`` over the voting tensors."""
        return sum(float(torch.sum((x - y) ** 2)) for _, pieces in self._pairs(a, b) for x, y in pieces)

    def _pairs(self, a: State, b: State) -> Iterator[tuple[str, Iterator[tuple[Tensor, Tensor]]]]:
        """The voting tensors of two models in float64, one after the other, the large ones in pieces."""
        for key in self._spec.voting(a):
            left, right = (torch.split(as_real(state[key].detach()).flatten(), LARGE) for state in (a, b))
            yield key, ((x.double(), y.to(x.device).double()) for x, y in zip(left, right, strict=True))


def collected(spec: PermutationSpec, states: Iterable[State]) -> tuple[PermutationSpec, tuple[State, ...]]:
    """All models at once, each checked against the spec.

    Raises:
        MergeError: if there is none, or one has entries that are no tensors yet.
        SpecError: if the spec does not fit one of them.
    """
    held = tuple(states)
    if not held:
        raise MergeError("no model to merge: give at least one state dict")
    for state in held:
        demand_numbers(state)
        demand_same_kinds(held[0], state)
        spec = spec.bind(state)
    return spec, held


def unmoved(spec: PermutationSpec, similarity: float, reason: str) -> Alignment:
    """The alignment of a model that stays as it is."""
    return Alignment(Permutation.identity(spec), similarity, History((), 0.0, True, reason))


def cosine(spec: PermutationSpec, a: State, b: State) -> float:
    """The cosine of two models as vectors of their voting tensors; 1 where both are zero.

    Args:
        spec: of both models, which says what votes.
        a: a state dict.
        b: a state dict.

    Raises:
        SpecError: if the spec does not fit one of them.
        MergeError: if one has entries without numbers.
    """
    for state in (a, b):
        spec.bind(state)
        demand_numbers(state)
    demand_same_kinds(a, b)
    return Vectors(spec).cosine(a, b)
