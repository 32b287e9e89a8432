"""FedWideAvg: wide models averaged without any permutation, then an inverse temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.serverapp.strategy import Strategy

from fedrebasin import Identity

from .aligned import Aligned
from .calibrators import Temperature
from .round import Calibrator, Probe

FROM_CLIENTS = Temperature()


class FedWideAvg(Aligned):
    """LEWC, sections 3 and 4: wide enough models can be averaged as they are, if the logits are scaled back.

    The accuracy is FedAvg's by construction, since a positive factor leaves the largest logit the largest; the loss is
    not. The factor ``beta`` is a metric of the round and ``strategy.beta`` afterwards; the arrays are FedAvg's.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        temperature: the calibrator that finds ``beta``: by default from the losses that the clients report, summed;
            ``Temperature(model, batches)`` on server data; None leaves it to whoever evaluates the model, and the
            wrapper is transparent.
        probes: see :class:`Aligned`.
        device: see :class:`Aligned`.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        temperature: Calibrator | None = FROM_CLIENTS,
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
