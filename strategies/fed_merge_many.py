"""FedMergeMany: all clients' models are permuted into agreement with one another, then averaged."""

from __future__ import annotations

from typing import Unpack

from flwr.serverapp.strategy import Strategy

from fedrebasin import Matcher, MergeMany, PermutationSpec, WeightMatching

from .aligned import Aligned
from .options import Options


class FedMergeMany(Aligned):
    """Git Re-Basin's MergeMany (Algorithm 3) in front of any Flower strategy: no model is the reference.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model.
        matcher: how a model is matched to the mean of the others (default: ``WeightMatching()``).
        options: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        matcher: Matcher | None = None,
        **options: Unpack[Options],
    ) -> None:
        aligner = MergeMany(WeightMatching() if matcher is None else matcher)
        super().__init__(strategy, spec=spec, aligner=aligner, **options)
