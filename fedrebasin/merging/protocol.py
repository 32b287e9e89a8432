"""What an aligner is: begin where the others are to go, place the models one by one, finish with the merge."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Protocol, cast

from fedrebasin.errors import MergeError
from fedrebasin.matching import Alignment, History
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.merge import Merge
from fedrebasin.spec import PermutationSpec, warn_of_gaps
from fedrebasin.state import State, distance
from fedrebasin.threads import ahead


class Aligner(Protocol):
    """Brings any number of models into one another's order, and averages them.

    This call is all that an aligner needs. One that can also say where a single model goes is a
    :class:`TwoStepAligner`.
    """

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and merge. A spec that moves little is warned of (:class:`fedrebasin.CoverageWarning`).

        Args:
            spec: of all models.
            states: at least one state dict.
            weights: one for each, equal if None; they weigh the mean and the objective.

        Raises:
            SpecError: if the spec does not fit a model.
            MatchingError: if a weight is not finite.
            MergeError: if there is no model, the weights cannot be used, or integer tensors differ once they have
                moved: see :mod:`fedrebasin.merging.average`.
        """
        ...


class Placer(Protocol):
    """Where the models of one merge go."""

    @property
    def reference(self) -> State | None:
        """What models are aligned to; None where that is not known before all of them are there."""
        ...

    def place(self, state: State) -> Alignment | None:
        """How a model is aligned: depends on it and on the reference only, and may be asked by several threads.

        Returns:
            None where there is no reference: the model is held until :meth:`finish`, in the order of the calls.

        Raises:
            SpecError: if the spec does not fit it.
            MatchingError: if a weight is not finite.
            MergeError: if it has entries that are no tensors yet.
        """
        ...

    def finish(self, weights: Sequence[float] | None = None) -> Merge:
        """The merge of the models that were held.

        Args:
            weights: one for each, equal if None.

        Raises:
            MergeError: if there is none, or they cannot be averaged.
        """
        ...


class TwoStepAligner(ABC):
    """An aligner in two steps, as a linear solver has init and compute; what it demands it says itself.

    Attributes:
        needs_all: whether no model can be placed before all of them are there.
        private: whether how one model is permuted depends on no other one, where none are shown to :meth:`begin`.
        idle: whether no model is permuted.
        looks_at: how many of the first models the reference is chosen from; None for as many as there are.
        threads: how many models are placed at a time, where there is a reference; no result depends on it.
        keep_states: whether a merge carries the aligned models.
    """

    needs_all: bool = True
    private: bool = False
    idle: bool = False
    looks_at: int | None = 0
    threads: int = 1
    keep_states: bool = True

    @abstractmethod
    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        """The first step: the reference, as far as it can be known.

        Args:
            spec: of all models.
            start: the model that the others may have been trained from.
            first: the first models, which are still to be placed; see :attr:`looks_at`.

        Raises:
            SpecError: if the spec does not fit one of them.
            MergeError: if none of them can be the reference.
        """

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and average: see :class:`Aligner`."""
        models = iter(states)
        first = tuple(islice(models, self.looks_at))
        placer = self.begin(spec, None, first)
        merge = _merged(self, placer, chain(first, models), weights)
        if not self.idle:
            warn_of_gaps(merge.alignments[0].permutation.spec)
        return merge


@dataclass
class Together:
    """A placer that holds all models, for what aligns them at the same time.

    Args:
        spec: of all models.
        merge: of the held models, with their weights.
    """

    spec: PermutationSpec
    merge: Callable[[PermutationSpec, Sequence[State], Sequence[float] | None], Merge]
    reference: State | None = None
    held: list[State] = field(default_factory=list)

    def place(self, state: State) -> None:
        """Hold the model."""
        self.held.append(state)

    def finish(self, weights: Sequence[float] | None = None) -> Merge:
        """The merge of all of them."""
        if not self.held:
            raise MergeError("no model to merge: give at least one state dict")
        return self.merge(self.spec, self.held, weights)


@dataclass(frozen=True)
class _Called(TwoStepAligner):
    aligner: Aligner

    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        return Together(spec, self.aligner)


def two_step(aligner: Aligner) -> TwoStepAligner:
    """An aligner in two steps: itself, or, where only its call says what it does, one that holds all models for that.

    The more derived of ``begin`` and ``__call__`` counts: a subclass of :class:`fedrebasin.AlignTo` with a call of its
    own is called.
    """
    for kind in type(aligner).__mro__:
        if "begin" in vars(kind):
            return cast(TwoStepAligner, aligner)
        if "__call__" in vars(kind):
            break
    return _Called(aligner)


def _merged(
    aligner: TwoStepAligner,
    placer: Placer,
    states: Iterable[State],
    weights: Sequence[float] | None,
) -> Merge:
    """The merge of all models: averaged as they are placed, or where they are held, by the placer."""
    started = time.perf_counter()
    kept: list[State] = []
    alignments: list[Alignment] = []
    before: list[float] = []
    after: list[float] = []

    def aligned() -> Iterator[State]:
        threads = aligner.threads if placer.reference is not None else 1
        for state, alignment in ahead(lambda state: (state, placer.place(state)), states, threads):
            if alignment is None or placer.reference is None:
                continue
            voting = alignment.permutation.spec.voting(state)
            result = state if alignment.permutation.is_identity else alignment.apply(state)
            alignments.append(alignment)
            before.append(distance(placer.reference, state, voting) ** 2)
            after.append(before[-1] if result is state else distance(placer.reference, result, voting) ** 2)
            if aligner.keep_states:
                kept.append(result)
            yield result

    placed = aligned()
    first = next(placed, None)
    if first is None:
        return placer.finish(weights)
    merged = average(chain([first], placed), weights)
    shares = normalised(weights, len(alignments))
    objective = tuple(sum(s * d for s, d in zip(shares, found, strict=True)) for found in (before, after))
    converged = all(alignment.history.converged for alignment in alignments)
    reason = "every model was aligned" if converged else "not every matching ran to its end"
    return Merge(
        tuple(kept), tuple(alignments), merged, History(objective, time.perf_counter() - started, converged, reason)
    )
