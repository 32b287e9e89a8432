"""Identity: the aligner that aligns nothing; plain weighted averaging (FedAvg)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedrebasin.matching import History, State
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.merge import Merge, collected, unmoved
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import cosine, distance


@dataclass(frozen=True)
class Identity:
    """Leave every model as it is."""

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Average without aligning: see :class:`fedrebasin.merging.Aligner`."""
        bound, held = collected(spec, states)
        voting, merged = bound.voting(held[0]), average(held, weights)
        shares = normalised(weights, len(held))
        spread = sum(share * distance(state, merged, voting) ** 2 for share, state in zip(shares, held, strict=True))
        alignments = tuple(unmoved(bound, cosine(merged, state, voting), "left as it is") for state in held)
        return Merge(held, alignments, merged, History((spread,), 0.0, True, "nothing was to be aligned"))
