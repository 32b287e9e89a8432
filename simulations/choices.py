"""The strategies that a simulation can be run with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from fedrebasin.strategies import BatchNormRecalibration, Calibrator, FedMergeMany, FedRebasin, FedWideAvg, Temperature

from .config import choose
from .federation import Federation


@dataclass(frozen=True)
class _Maker:
    """Builds strategies over FedAvg for one federation, with the server's 20 % of the test set as its own data."""

    federation: Federation

    def fedavg(self) -> FedAvg:
        clients = self.federation.config.clients
        return FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)

    def rebasin(self) -> Strategy:
        return FedRebasin(self.fedavg(), spec=self.federation.spec, calibrators=self.recalibration())

    def merge_many(self) -> Strategy:
        return FedMergeMany(self.fedavg(), spec=self.federation.spec, calibrators=self.recalibration())

    def wide_avg(self) -> Strategy:
        model, dataset = self.federation.server_model(), self.federation.dataset
        held_out, _ = dataset.test_split()
        return FedWideAvg(
            self.fedavg(),
            temperature=Temperature(model, [(dataset.test_inputs[held_out], dataset.test_labels[held_out])]),
        )

    def recalibration(self) -> tuple[Calibrator, ...]:
        """Averaged weights need new running statistics (Git Re-Basin, A.4), wherever there are some."""
        model = self.federation.server_model()
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            return ()
        dataset = self.federation.dataset
        held_out, _ = dataset.test_split()
        return (BatchNormRecalibration(model, torch.split(dataset.test_inputs[held_out], 256)),)


STRATEGIES: dict[str, Callable[[_Maker], Strategy]] = {
    "fedavg": _Maker.fedavg,
    "rebasin": _Maker.rebasin,
    "merge-many": _Maker.merge_many,
    "wide-avg": _Maker.wide_avg,
}


def make_strategy(name: str, federation: Federation) -> Strategy:
    """A strategy by its name: fedavg, rebasin, merge-many or wide-avg, all over FedAvg, asking every client.

    Raises:
        RebasinError: for an unknown name, with the closest one.
    """
    choose("strategy", name, STRATEGIES)
    return STRATEGIES[name](_Maker(federation))
