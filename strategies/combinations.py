"""Which strategies may stand inside and outside of an alignment, and why others may not."""

from __future__ import annotations

import sys
from typing import Protocol

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvgM,
    Strategy,
)
from flwr.serverapp.strategy.fedopt import FedOpt

from fedrebasin import Aligner, PermutationSpec, RebasinError, SpecError
from fedrebasin.merging import two_step

from .aggregate import ReplyAlignment, needs_only_the_mean
from .replies import is_a, unwrap
from .round import BatchNormRecalibration, Calibrator, Probe, TemperatureCalibration

#: Inner strategies that keep their own copy of the global model, or momenta of its changes.
KEEPS_STATE = (FedAvgM, FedOpt)

CLIENTS_CLIP = (DifferentialPrivacyClientSideFixedClipping, DifferentialPrivacyClientSideAdaptiveClipping)
SERVER_CLIPS = (DifferentialPrivacyServerSideFixedClipping, DifferentialPrivacyServerSideAdaptiveClipping)


class Parts(Protocol):
    """What an aligned strategy is made of."""

    strategy: Strategy
    aligner: Aligner
    calibrators: tuple[Calibrator, ...]
    probes: tuple[Probe, ...]
    streaming: bool

    @property
    def spec(self) -> PermutationSpec | None:
        """The permutation spec."""
        ...


def is_private(strategy: Strategy) -> bool:
    """Whether a strategy promises differential privacy."""
    return is_a(strategy, CLIENTS_CLIP + SERVER_CLIPS)


def check_parts(parts: Parts) -> None:
    """Refuse parts that do not fit together, before a run.

    Raises:
        SpecError: if an aligner that permutes has no spec.
        RebasinError: for an order in which a strategy would not do what it promises.
    """
    aligner = two_step(parts.aligner)
    if parts.spec is None and not aligner.idle:
        raise SpecError(f"{type(parts).__name__} needs spec=, as in PermutationSpec.trace(model, example_inputs)")
    if aligner.needs_all and not aligner.idle and parts.streaming and needs_only_the_mean(parts.strategy):
        raise RebasinError(
            f"{type(parts.aligner).__name__} needs all models at once, as it is set: use AlignTo(), or streaming=False"
        )
    inner = type(parts.strategy).__name__
    if any(isinstance(getattr(layer, "stage", None), ReplyAlignment) for layer in unwrap(parts.strategy)):
        raise RebasinError(f"{inner} inside {type(parts).__name__}: its replies would be aligned twice; one is enough")
    rewriting = [type(part).__name__ for part in parts.calibrators if part.rewrites_weights]
    if rewriting and is_a(parts.strategy, KEEPS_STATE):
        raise RebasinError(
            f"{', '.join(rewriting)} rewrites weights after {inner} has aggregated, which "
            "keeps its own copy of the global model and would undo it: use FedAvg inside, or buffers only"
        )
    if is_private(parts.strategy):
        _check_privacy(parts, inner)


def check_outside(strategy: Parts) -> None:
    """Refuse to run inside another strategy, but for an alignment that does nothing.

    To be called where that strategy would call: the one who calls is who wraps.

    Raises:
        RebasinError: naming the strategy outside.
    """
    caller = sys._getframe(2).f_locals.get("self")
    if not isinstance(caller, Strategy) or getattr(caller, "strategy", None) is not strategy:
        return
    nothing = two_step(strategy.aligner).idle and not (strategy.calibrators or strategy.probes)
    if not nothing or strategy.streaming:
        name, outer = type(strategy).__name__, type(caller).__name__
        raise RebasinError(
            f"{outer} around {name} would see replies that are not aligned yet, and {name} would not see the model "
            f"that {outer} makes: put the alignment outside, {name}({outer}(...))"
        )


def _check_privacy(parts: Parts, inner: str) -> None:
    if is_a(parts.strategy, CLIENTS_CLIP) and not two_step(parts.aligner).idle:
        raise RebasinError(
            f"{inner}: clients clip their updates before the server permutes them, and a permuted update can be longer "
            "than the clipping norm: align on the client, mods=[fixedclipping_mod, AlignMod(spec)], and not on the "
            "server"
        )
    if not two_step(parts.aligner).private:
        raise RebasinError(
            f"{inner}: with {type(parts.aligner).__name__} as it is set, how one client's model is permuted depends on "
            "the others, which the noise does not cover: use AlignTo() or AlignTo(reference=a state dict)"
        )
    for calibrator in parts.calibrators:
        on_server_data = getattr(calibrator, "batches", None) is not None
        if not (on_server_data and isinstance(calibrator, BatchNormRecalibration | TemperatureCalibration)):
            raise RebasinError(
                f"{type(calibrator).__name__} after {inner}: what it takes from the clients carries no noise; only "
                "BatchNormRecalibration and TemperatureCalibration on server data may follow"
            )
    for probe in parts.probes:
        if getattr(probe, "asks_clients", False):
            raise RebasinError(
                f"{type(probe).__name__} after {inner} would show clients one another's models, which carry no noise: "
                "give it a model and batches on the server"
            )
