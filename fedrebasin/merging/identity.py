"""Identity: the aligner that aligns nothing; plain weighted averaging (FedAvg)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedrebasin.matching import History, State
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.merge import Merge, Vectors, collected, unmoved
from fedrebasin.spec import PermutationSpec


@dataclass(frozen=True)
class Identity:
    """Leave every model as it is."""

    idle: ClassVar[bool] = True
    needs_all: ClassVar[bool] = False
    private: ClassVar[bool] = True

    def __call__(self, spec: PermutationSpec, states: Iterable[State], weights: Sequence[float] | None = None) -> Merge:
        """Average without aligning: see :class:`fedrebasin.merging.Aligner`."""
        bound, held = collected(spec, states)
        vectors, merged = Vectors(bound), average(held, weights)
        shares = normalised(weights, len(held))
        spread = sum(share * vectors.squared_distance(state, merged) for share, state in zip(shares, held, strict=True))
        alignments = tuple(unmoved(bound, vectors.cosine(merged, state), "left as it is") for state in held)
        return Merge(held, alignments, merged, History((spread,), 0.0, True, "nothing was to be aligned"))
