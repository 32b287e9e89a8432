"""What an aligner returns."""

from collections.abc import Iterable
from dataclasses import dataclass

from fedrebasin.errors import MergeError, deprecated
from fedrebasin.matching import Alignment, History
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State, cosines, demand_numbers, demand_same_kinds


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
    return cosines(a, b, spec.voting(a))[0]
