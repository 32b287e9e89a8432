"""Identity: the aligner that aligns nothing; plain weighted averaging (FedAvg)."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedrebasin.matching import History
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.merge import Merge, collected, unmoved
from fedrebasin.merging.protocol import Placer, Together, TwoStepAligner
from fedrebasin.spec import PermutationSpec
from fedrebasin.state import State, cosine, distance


@dataclass(frozen=True)
class Identity(TwoStepAligner):
    """Leave every model as it is."""

    private = True
    idle = True

    def begin(self, spec: PermutationSpec, start: State | None = None, first: Sequence[State] = ()) -> Placer:
        """A placer that holds the models, whose similarity to their mean is not known before: see :class:`Placer`."""
        return Together(spec, _averaged)


def _averaged(spec: PermutationSpec, states: Sequence[State], weights: Sequence[float] | None) -> Merge:
    bound, held = collected(spec, states)
    voting, merged = bound.voting(held[0]), average(held, weights)
    shares = normalised(weights, len(held))
    spread = sum(share * distance(state, merged, voting) ** 2 for share, state in zip(shares, held, strict=True))
    alignments = tuple(unmoved(bound, cosine(merged, state, voting), "left as it is") for state in held)
    return Merge(held, alignments, merged, History((spread,), 0.0, True, "nothing was to be aligned"))
