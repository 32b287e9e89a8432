"""The strategies that a simulation can be run with, by name: a base, then what is done to its aggregate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn

from fedrebasin import (
    ActivationMatching,
    Aligner,
    AlignTo,
    CycleConsistent,
    Identity,
    MergeMany,
    RebasinError,
    StraightThrough,
    WeightMatching,
)
from fedrebasin.errors import choose
from fedrebasin.strategies import (
    ActivationAlignment,
    Aligned,
    BatchNormRecalibration,
    Calibrator,
    HeadRegression,
    Probe,
    RegMean,
    Repair,
    SequentialRegression,
    TemperatureCalibration,
)

from ..engines import ENGINES
from ..training import Federation

SERVER_BATCH = 256


@dataclass(frozen=True)
class _Maker:
    """Builds the parts of strategies for one federation."""

    federation: Federation

    @property
    def example_inputs(self) -> Tensor:
        return torch.zeros(2, *self.federation.dataset.sample_shape)

    @property
    def has_batch_norm(self) -> bool:
        return any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.federation.server_model().modules()
        )

    def server_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The 20 % of the test set that no row is judged on: the server's own data, where a matcher needs some."""
        dataset, (held_out, _) = self.federation.dataset, self.federation.dataset.test_split()
        inputs, labels = dataset.test_inputs[held_out], dataset.test_labels[held_out]
        return list(zip(torch.split(inputs, SERVER_BATCH), torch.split(labels, SERVER_BATCH), strict=True))

    def activation(self) -> Aligner:
        return AlignTo(ActivationMatching(self.federation.server_model(), self.server_batches()))

    def straight_through(self) -> Aligner:
        return AlignTo(StraightThrough(self.federation.server_model(), self.server_batches()))

    def activation_alignment(self) -> Calibrator:
        return ActivationAlignment(self.federation.server_model(), self.example_inputs)

    def repair(self) -> Calibrator:
        return Repair(self.federation.server_model(), self.example_inputs)

    def sequential_regression(self) -> Calibrator:
        return SequentialRegression(self.federation.server_model(), self.example_inputs)

    def ridge_head(self) -> Calibrator:
        return HeadRegression(self.federation.server_model(), self.example_inputs)


#: How the clients' models are brought into agreement; only `activation` and `ste` use data of the server's.
BASES: dict[str, Callable[[_Maker], Aligner]] = {
    "fedavg": lambda maker: Identity(),
    "rebasin": lambda maker: AlignTo(),
    "merge-many": lambda maker: MergeMany(),
    "wide-avg": lambda maker: Identity(),
    "frank-wolfe": lambda maker: AlignTo(WeightMatching(method="frank-wolfe")),
    "cycle-consistent": lambda maker: CycleConsistent(),
    "activation": _Maker.activation,
    "ste": _Maker.straight_through,
}

#: What may follow a base, each behind a +; all of them work with sums that the clients send.
CALIBRATORS: dict[str, Callable[[_Maker], Calibrator]] = {
    "activations": _Maker.activation_alignment,
    "bn": lambda maker: BatchNormRecalibration(),
    "repair": _Maker.repair,
    "regmean": lambda maker: RegMean(),
    "seqreg": _Maker.sequential_regression,
    "head": _Maker.ridge_head,
    "temperature": lambda maker: TemperatureCalibration(),
}

UNALIGNED = ("fedavg", "wide-avg")
NEEDS_ALIGNMENT = ("activations", "repair", "regmean", "seqreg")
CHANGES_FEATURES = ("activations", "regmean", "seqreg")


def parse_strategy(name: str) -> tuple[str, tuple[str, ...]]:
    """The base and the calibrators of a strategy's name, such as ``rebasin+seqreg+head``.

    Raises:
        RebasinError: for an unknown part, with the closest one, or parts that do not go together.
    """
    base, *calibrators = name.split("+")
    choose("strategy", base, BASES)
    for calibrator in calibrators:
        choose(f"calibrator in {name}:", calibrator, CALIBRATORS)
        if base in UNALIGNED and calibrator in NEEDS_ALIGNMENT:
            raise RebasinError(f"strategy {name}: {calibrator} needs aligned models, as in rebasin+{calibrator}")
    if len(set(calibrators)) != len(calibrators):
        raise RebasinError(f"strategy {name}: name each calibrator once")
    if "temperature" in calibrators[:-1]:
        raise RebasinError(f"strategy {name}: temperature must come last, what follows it changes the logits it fits")
    return base, tuple(calibrators)


def demand_choices(strategies: Sequence[str], engine: str) -> None:
    """Refuse, before any work, what a comparison cannot be run with.

    Args:
        strategies: names, see :func:`parse_strategy`.
        engine: one of ``ENGINES``.

    Raises:
        RebasinError: for an unknown strategy or engine, a strategy named twice, or none.
    """
    for name in strategies:
        parse_strategy(name)
    choose("engine", engine, ENGINES)
    if not strategies or len(set(strategies)) != len(strategies):
        raise RebasinError("strategies: name at least one, each once")


def make_strategy(name: str, federation: Federation, probes: Sequence[Probe] = ()) -> Strategy:
    """A strategy by its name, over FedAvg, asking every client: ``BASE``, or ``BASE+CALIBRATOR+...``.

    BatchNorm's running statistics are measured anew on averaged weights (Git Re-Basin, A.4) wherever there are some
    and models were aligned, also without ``+bn``. ``wide-avg`` is ``fedavg+temperature``. Probes look at the rounds of
    every strategy but plain ``fedavg``, which is Flower's own.

    Raises:
        RebasinError: see :func:`parse_strategy`.
    """
    base, named = parse_strategy(name)
    clients, maker = federation.config.clients, _Maker(federation)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    if name == "fedavg":
        return inner
    calibrators = list(named)
    if base == "wide-avg" and calibrators[-1:] != ["temperature"]:
        calibrators.append("temperature")
    if base not in UNALIGNED and maker.has_batch_norm:
        calibrators = _recalibrated(calibrators)
    aligner = BASES[base](maker)
    return Aligned(
        inner,
        spec=None if base in UNALIGNED else federation.spec,
        aligner=aligner,
        calibrators=[CALIBRATORS[calibrator](maker) for calibrator in calibrators],
        probes=probes,
    )


def _recalibrated(calibrators: list[str]) -> list[str]:
    """With a recalibration at the beginning and after each change of the features, where none was asked for."""
    result: list[str] = []
    for before, calibrator in zip(["", *calibrators], [*calibrators, ""], strict=True):
        if calibrator != "bn" and (not before or before in CHANGES_FEATURES):
            result.append("bn")
        if calibrator:
            result.append(calibrator)
    return result
