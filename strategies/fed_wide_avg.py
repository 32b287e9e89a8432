"""FedWideAvg: wide models averaged without any permutation, then an inverse temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.serverapp.strategy import Strategy

from fedrebasin import Identity

from .aligned import Aligned
from .round import Calibrator, Probe


class FedWideAvg(Aligned):
    """LEWC, sections 3 and 4: wide enough models can be averaged as they are, if the logits are scaled back.

    The accuracy is FedAvg's by construction, since a positive factor leaves the largest logit the largest; the loss is
    not. The factor ``beta`` is a metric of the round and ``strategy.beta`` afterwards; the arrays are FedAvg's.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        temperature: the calibrator that finds ``beta``, such as ``Temperature(model, batches)`` on server data; None
            leaves that to whoever evaluates the model.
        probes: see :class:`Aligned`.
        device: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        temperature: Calibrator | None = None,
        probes: Sequence[Probe] = (),
        device: str | torch.device = "auto",
    ) -> None:
        super().__init__(
            strategy,
            aligner=Identity(),
            calibrators=() if temperature is None else (temperature,),
            probes=probes,
            device=device,
        )
