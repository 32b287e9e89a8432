"""AlignTo: every model is aligned to one reference."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from fedrebasin.errors import MergeError
from fedrebasin.matching import Alignment, History, Matcher, State, WeightMatching
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.medoid import medoid
from fedrebasin.merging.merge import Merge, collected, unmoved
from fedrebasin.spec import PermutationSpec, warn_of_gaps
from fedrebasin.state import demand_numbers, demand_same_kinds, distance
from fedrebasin.threads import ahead

Reference = Literal["auto", "medoid"] | int | State


@dataclass(frozen=True)
class AlignTo:
    """Align every model to a reference, then average (Git Re-Basin, section 3, for more than two models).

    Args:
        matcher: aligns one model to the reference.
        reference: a state dict (which takes no part in the mean), the position of one of the models, or ``"medoid"``:
            the model that agrees best with the others, see :func:`fedrebasin.merging.medoid.medoid`. ``"auto"`` is
            the medoid here; the Flower strategies replace it by the global model where clients started from that.
        keep_states: whether the merge carries the aligned models. Without, and with a reference that is a state dict
            or 0, models given as an iterator are taken one by one: memory for one reference, one model and the sum.
        threads: how many models are matched at a time; the result does not depend on it.
    """

    matcher: Matcher = field(default_factory=WeightMatching)
    reference: Reference = "auto"
    keep_states: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise MergeError(f"threads {self.threads}: it must be at least 1")
        known = isinstance(self.reference, Mapping | int) or self.reference in ("auto", "medoid")
        if not known:
            raise MergeError(f"reference {self.reference!r}: choose auto, medoid, a position, or a state dict")

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Align and average: see :class:`fedrebasin.merging.Aligner`."""
        started = time.perf_counter()
        kept: list[State] = []
        alignments: list[Alignment] = []
        before: list[float] = []
        after: list[float] = []

        def aligned() -> Iterator[State]:
            for alignment, state, result, reference, bound in self._each(spec, states):
                voting = bound.voting(state)
                alignments.append(alignment)
                before.append(distance(reference, state, voting) ** 2)
                after.append(distance(reference, result, voting) ** 2)
                if self.keep_states:
                    kept.append(result)
                yield result

        merged = average(aligned(), weights)
        warn_of_gaps(alignments[0].permutation.spec)
        shares = normalised(weights, len(alignments))
        objective = tuple(sum(s * d for s, d in zip(shares, found, strict=True)) for found in (before, after))
        converged = all(alignment.history.converged for alignment in alignments)
        reason = "every model was aligned" if converged else "not every matching ran to its end"
        return Merge(
            tuple(kept), tuple(alignments), merged, History(objective, time.perf_counter() - started, converged, reason)
        )

    def _each(
        self, spec: PermutationSpec, states: Iterable[State]
    ) -> Iterator[tuple[Alignment, State, State, State, PermutationSpec]]:
        """Alignment, model, aligned model, reference and bound spec, for one model after the other."""
        reference = self.reference if isinstance(self.reference, Mapping) else None
        chosen = -1
        if reference is None and (self.reference != 0 or isinstance(self.reference, bool)):
            spec, held = collected(spec, states)
            states, chosen = held, self._choose(spec, held)
            reference = held[chosen]
        models = iter(states)
        if reference is None:
            reference = next(models, None)
            if reference is None:
                return
            chosen, models = 0, chain([reference], models)

        def align(numbered: tuple[int, State]) -> tuple[Alignment, State, State, State, PermutationSpec]:
            position, state = numbered
            demand_numbers(state)
            demand_same_kinds(reference, state)
            bound = spec.bind(state)
            if position == chosen:
                return unmoved(bound, 1.0, "it is the reference"), state, state, reference, bound
            alignment = self.matcher(bound, reference=reference, candidate=state)
            return alignment, state, alignment.apply(state), reference, bound

        yield from ahead(align, enumerate(models), self.threads)

    def _choose(self, spec: PermutationSpec, states: Sequence[State]) -> int:
        if isinstance(self.reference, int):
            if not -len(states) <= self.reference < len(states):
                raise MergeError(f"reference {self.reference}: there are {len(states)} models")
            return self.reference % len(states)
        return medoid(spec, states)
