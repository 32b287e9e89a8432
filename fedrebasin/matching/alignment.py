"""What a matcher is and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedrebasin.errors import deprecated
from fedrebasin.spec import Permutation, PermutationSpec
from fedrebasin.state import State

#: From a candidate's number, a reference, and where the candidate stands, to a better permutation of it.
Step = Callable[[int, State, Permutation], Permutation]


@dataclass(frozen=True)
class History:
    """How an optimisation went.

    Args:
        objective: its value at the start and after every sweep; what it is and whether it rises or falls is said by
            the method that returns it. Never the other way from one entry to the next.
        seconds: wall-clock time.
        converged: whether the last sweep changed nothing.
        reason: why it stopped, in words.
    """

    objective: tuple[float, ...]
    seconds: float
    converged: bool
    reason: str


@dataclass(frozen=True)
class Alignment:
    """A candidate's permutation towards a reference.

    Args:
        permutation: ``permutation.apply(candidate)`` is the aligned candidate.
        similarity: the cosine, in [-1, 1], of all voting tensors of the reference and the aligned candidate; 1 where
            both are zero. A few large units decide it alone.
        history: the objective by sweep.
        by_layer: the same cosine for every layer, so that one that did not agree shows however small its weights are.
            A layer is a module with tensors of its own, by its name: ``"0"`` of ``"0.weight"`` and ``"0.bias"``. Empty
            where nobody measured it.
        distance: Euclidean, of the voting tensors of the reference and the aligned candidate; None likewise.
    """

    permutation: Permutation
    similarity: float
    history: History
    by_layer: Mapping[str, float] = field(default_factory=dict)
    distance: float | None = None

    @property
    def least_similar(self) -> tuple[str, float] | None:
        """The layer with the smallest cosine, and that cosine; None where they were not measured."""
        return min(self.by_layer.items(), key=lambda item: item[1], default=None)

    @property
    def trace(self) -> History:
        """The name of ``history`` in 0.1."""
        deprecated("Alignment.trace", "Alignment.history")
        return self.history

    def apply(self, candidate: State) -> dict[str, Tensor]:
        """The candidate, aligned: its own dtypes and devices, tensors that do not move are shared."""
        return self.permutation.apply(candidate)


class Matcher(Protocol):
    """Finds the permutation of the candidate that brings it closest to the reference, in the matcher's sense."""

    def __call__(self, spec: PermutationSpec, reference: State, candidate: State) -> Alignment:
        """Match two models.

        Args:
            spec: of both models.
            reference: a state dict; it stays as it is.
            candidate: a state dict to be permuted.

        Raises:
            SpecError: if the spec does not fit one of them.
            MatchingError: if a weight is not finite.
        """
        ...
