"""AlignTo: every model is aligned to one reference."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedrebasin.errors import MergeError
from fedrebasin.matching import Alignment, Matcher, State, Trace, WeightMatching
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.medoid import medoid
from fedrebasin.merging.merge import Merge, Vectors, collected, unmoved
from fedrebasin.spec import PermutationSpec

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
    """

    matcher: Matcher = field(default_factory=WeightMatching)
    reference: Reference = "auto"
    keep_states: bool = True

    def __post_init__(self) -> None:
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
                vectors = Vectors(bound)
                alignments.append(alignment)
                before.append(vectors.squared_distance(reference, state))
                after.append(vectors.squared_distance(reference, result))
                if self.keep_states:
                    kept.append(result)
                yield result

        merged = average(aligned(), weights)
        shares = normalised(weights, len(alignments))
        objective = tuple(sum(s * d for s, d in zip(shares, found, strict=True)) for found in (before, after))
        converged = all(alignment.trace.converged for alignment in alignments)
        reason = "every model was aligned" if converged else "not every matching ran to its end"
        return Merge(
            tuple(kept), tuple(alignments), merged, Trace(objective, time.perf_counter() - started, converged, reason)
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
        for position, state in enumerate(states):
            spec = spec.bind(state)
            if reference is None:
                reference, chosen = state, 0
            if position == chosen:
                yield unmoved(spec, 1.0, "it is the reference"), state, state, reference, spec
                continue
            alignment = self.matcher(spec, reference=reference, candidate=state)
            yield alignment, state, alignment.apply(state), reference, spec

    def _choose(self, spec: PermutationSpec, states: Sequence[State]) -> int:
        if isinstance(self.reference, int):
            if not -len(states) <= self.reference < len(states):
                raise MergeError(f"reference {self.reference}: there are {len(states)} models")
            return self.reference % len(states)
        return medoid(spec, states, self.matcher)
