"""FedRebasin: every client's model is permuted to one reference by weight matching, then averaged."""

from __future__ import annotations

from typing import Literal, Unpack

from flwr.serverapp.strategy import Strategy

from fedrebasin import AlignTo, Matcher, PermutationSpec, WeightMatching

from .aligned import Aligned
from .options import Options


class FedRebasin(Aligned):
    """Git Re-Basin (section 3.2, Algorithm 1) in front of any Flower strategy.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model.
        matcher: how a pair is matched (default: ``WeightMatching()``).
        reference: ``"auto"`` (the global model if the clients measurably started from it, else their medoid) or
            ``"medoid"``.
        options: see :class:`Aligned`.

    Example: ``FedRebasin(FedAvg(fraction_train=0.5), spec=PermutationSpec.trace(model, example_inputs))``
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        matcher: Matcher | None = None,
        reference: Literal["auto", "medoid"] = "auto",
        **options: Unpack[Options],
    ) -> None:
        aligner = AlignTo(WeightMatching() if matcher is None else matcher, reference=reference)
        super().__init__(strategy, spec=spec, aligner=aligner, **options)
