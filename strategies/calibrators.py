"""Calibrators: what is done to the aggregate after the inner strategy, on the server's own data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedrebasin import CalibrationError, fit_temperature, recalibrate_batch_norm

from .round import Calibrated, Round

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Temperature:
    """The inverse temperature ``beta`` that minimises the loss of ``beta * logits`` (LEWC, section 3.1).

    The model stays as it is; ``beta`` is reported with the loss before and after.

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        batches: pairs of inputs and class labels, iterated anew in every round.
    """

    model: nn.Module
    batches: Batches

    @property
    def rewrites_weights(self) -> bool:
        """No: ``beta`` is a metric."""
        return False

    def __call__(self, round_: Round) -> Calibrated:
        """Fit ``beta`` to the aggregate's logits.

        Raises:
            CalibrationError: if there are no batches or the logits are not finite.
        """
        logits, labels = [], []
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for inputs, targets in self.batches:
                    logits.append(functional_call(self.model, round_.state, (inputs.to(round_.device),)).cpu())
                    labels.append(targets.cpu())
        finally:
            self.model.train(training)
        if not logits:
            raise CalibrationError("no batches to fit a temperature on")
        fitted = fit_temperature(torch.cat(logits), torch.cat(labels))
        return Calibrated(
            round_.state,
            {"beta": fitted.beta, "nll": fitted.nll_before, "nll-calibrated": fitted.nll_after},
        )


@dataclass(frozen=True)
class BatchNormRecalibration:
    """BatchNorm's running statistics measured anew on the merged model (Git Re-Basin, appendix A.4).

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        batches: inputs, or pairs of inputs and labels, iterated anew in every round.
    """

    model: nn.Module
    batches: Iterable[Tensor] | Batches

    @property
    def rewrites_weights(self) -> bool:
        """No: running statistics are buffers."""
        return False

    def __call__(self, round_: Round) -> Calibrated:
        """Replace the aggregate's running statistics.

        Raises:
            CalibrationError: if there are no batches.
        """
        return Calibrated(recalibrate_batch_norm(self.model, round_.state, self.batches))
