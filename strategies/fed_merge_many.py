"""FedMergeMany: all clients' models are permuted into agreement with one another, then averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.serverapp.strategy import Strategy

from fedrebasin import Matcher, MergeMany, PermutationSpec, WeightMatching

from .aligned import Aligned
from .round import Calibrator, Probe


class FedMergeMany(Aligned):
    """Git Re-Basin's MergeMany (Algorithm 3) in front of any Flower strategy: no model is the reference.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        spec: the permutation spec of the model.
        matcher: how a model is matched to the mean of the others (default: ``WeightMatching()``).
        calibrators: see :class:`Aligned`.
        probes: see :class:`Aligned`.
        device: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        matcher: Matcher | None = None,
        calibrators: Sequence[Calibrator] = (),
        probes: Sequence[Probe] = (),
        device: str | torch.device = "auto",
    ) -> None:
        super().__init__(
            strategy,
            spec=spec,
            aligner=MergeMany(WeightMatching() if matcher is None else matcher),
            calibrators=calibrators,
            probes=probes,
            device=device,
        )
