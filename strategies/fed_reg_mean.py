"""FedRegMean: clients' models are aligned, then merged by regression on their own features."""

from __future__ import annotations

from typing import Unpack

from flwr.serverapp.strategy import Strategy

from fedrebasin import Aligner, MergeMany, PermutationSpec

from .aligned import Aligned
from .options import Options, calibrating
from .regression import RegMean


class FedRegMean(Aligned):
    """RegMean (Jin 2023) behind an alignment: one round trip of Gram matrices, no data on the server.

    The clients answer through :func:`fedrebasin.strategies.register`.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``); one that keeps state is refused.
        spec: the permutation spec of the model.
        aligner: how models are brought into agreement (default: ``MergeMany()``).
        regression: its settings.
        options: see :class:`Aligned`; ``calibrators`` follow the regression, such as ``BatchNormRecalibration()``.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        aligner: Aligner | None = None,
        regression: RegMean | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            strategy,
            spec=spec,
            aligner=MergeMany() if aligner is None else aligner,
            **calibrating(options, before=[RegMean() if regression is None else regression]),
        )
