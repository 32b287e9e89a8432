"""FedRegMean: clients' models are aligned, then merged by regression on their own features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.serverapp.strategy import Strategy

from fedrebasin import Aligner, MergeMany, PermutationSpec

from .aligned import Aligned
from .regression import RegMean
from .round import Calibrator, Probe


class FedRegMean(Aligned):
    """RegMean (Jin 2023) behind an alignment: one round trip of Gram matrices, no data on the server.

    The clients answer through :func:`fedrebasin.strategies.register`.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``); one that keeps state is refused.
        spec: the permutation spec of the model.
        aligner: how models are brought into agreement (default: ``MergeMany()``).
        regression: its settings.
        calibrators: what follows it, such as ``BatchNormRecalibration()``.
        probes: see :class:`Aligned`.
        device: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        aligner: Aligner | None = None,
        regression: RegMean | None = None,
        calibrators: Sequence[Calibrator] = (),
        probes: Sequence[Probe] = (),
        device: str | torch.device = "auto",
    ) -> None:
        super().__init__(
            strategy,
            spec=spec,
            aligner=MergeMany() if aligner is None else aligner,
            calibrators=(RegMean() if regression is None else regression, *calibrators),
            probes=probes,
            device=device,
        )
