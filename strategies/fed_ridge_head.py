"""FedRidgeHead: clients' models are aligned and averaged, then the last layer is solved for in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedrebasin import Aligner, PermutationSpec

from .aligned import Aligned
from .calibrators import Temperature
from .regression import RidgeHead
from .round import Calibrator, Probe


class FedRidgeHead(Aligned):
    """A ridge head (Fed3R, Fani 2024) behind an alignment: one round trip of sums, and one for the temperature.

    The clients answer through :func:`fedrebasin.strategies.register`. Regression scores are far from probabilities:
    ``strategy.beta`` is what they are to be multiplied with.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``); one that keeps state is refused.
        spec: the permutation spec of the model.
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to find the last layer.
        aligner: how models are brought into agreement (default: ``AlignTo()``).
        ridge: see :class:`RidgeHead`.
        calibrators: what comes before the head, such as ``SequentialRegression(model, example_inputs)``.
        temperature: what comes after it (default: ``Temperature()``).
        probes: see :class:`Aligned`.
        device: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        spec: PermutationSpec,
        model: nn.Module,
        example_inputs: Any,
        aligner: Aligner | None = None,
        ridge: float | None = None,
        calibrators: Sequence[Calibrator] = (),
        temperature: Calibrator | None = None,
        probes: Sequence[Probe] = (),
        device: str | torch.device = "auto",
    ) -> None:
        head = RidgeHead(model, example_inputs, ridge)
        super().__init__(
            strategy,
            spec=spec,
            aligner=aligner,
            calibrators=(*calibrators, head, Temperature() if temperature is None else temperature),
            probes=probes,
            device=device,
        )
