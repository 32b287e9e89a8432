"""FedRidgeHead: clients' models are aligned and averaged, then the last layer is solved for in closed form."""

from __future__ import annotations

from typing import Any, Unpack

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedrebasin import Aligner, PermutationSpec

from .aligned import Aligned
from .calibrators import TemperatureCalibration
from .options import Options, calibrating
from .regression import HeadRegression
from .round import Calibrator


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
        ridge: see :class:`HeadRegression`.
        temperature: what comes after the head (default: ``TemperatureCalibration()``).
        options: see :class:`Aligned`; ``calibrators`` come before the head, such as ``SequentialRegression(model,
            example_inputs)``.
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
        temperature: Calibrator | None = None,
        **options: Unpack[Options],
    ) -> None:
        head = HeadRegression(model, example_inputs, ridge)
        last = TemperatureCalibration() if temperature is None else temperature
        super().__init__(strategy, spec=spec, aligner=aligner, **calibrating(options, after=[head, last]))
