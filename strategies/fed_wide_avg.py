"""FedWideAvg: wide models averaged without any permutation, then an inverse temperature."""

from __future__ import annotations

from typing import Unpack

from flwr.serverapp.strategy import Strategy

from fedrebasin import Identity

from .aligned import Aligned
from .calibrators import TemperatureCalibration
from .options import Options, calibrating
from .round import Calibrator

FROM_CLIENTS = TemperatureCalibration()


class FedWideAvg(Aligned):
    """LEWC, sections 3 and 4: wide enough models can be averaged as they are, if the logits are scaled back.

    The accuracy is FedAvg's by construction, since a positive factor leaves the largest logit the largest; the loss is
    not. The factor ``beta`` is a metric of the round and ``strategy.beta`` afterwards; the arrays are FedAvg's.

    Args:
        strategy: the inner strategy (default: ``FedAvg()``).
        temperature: the calibrator that finds ``beta``: by default from the losses that the clients report, summed;
            ``TemperatureCalibration(model, batches)`` on server data; None leaves it to whoever evaluates the model,
            and the wrapper is transparent.
        options: see :class:`Aligned`; ``calibrators`` come before the temperature.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        temperature: Calibrator | None = FROM_CLIENTS,
        **options: Unpack[Options],
    ) -> None:
        after = () if temperature is None else (temperature,)
        super().__init__(strategy, aligner=Identity(), **calibrating(options, after=after))
