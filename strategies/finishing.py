"""What comes after the inner strategy: calibrators change the aggregate, probes look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import WARNING
from typing import Protocol

from flwr.app import ArrayRecord
from flwr.common import log
from flwr.serverapp.strategy import FedAvgM, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt

from fedrebasin import Aligner, Identity, PermutationSpec, RebasinError, SpecError

from .records import Template
from .round import Calibrator, Probe, Round
from .screening import is_a

#: Inner strategies that keep their own copy of the global model, or momenta of its changes.
KEEPS_STATE = (FedAvgM, FedOpt)


class Parts(Protocol):
    """What is checked before a run."""

    strategy: Strategy
    aligner: Aligner
    calibrators: tuple[Calibrator, ...]

    @property
    def spec(self) -> PermutationSpec | None:
        """The permutation spec."""
        ...


def check_parts(parts: Parts) -> None:
    """Refuse parts that do not fit together.

    Raises:
        SpecError: if an aligner that permutes has no spec.
        RebasinError: if a calibrator rewrites weights that the inner strategy keeps a copy of.
    """
    if parts.spec is None and not isinstance(parts.aligner, Identity):
        raise SpecError(f"{type(parts).__name__} needs spec=, as in PermutationSpec.trace(model, example_inputs)")
    rewriting = [type(part).__name__ for part in parts.calibrators if part.rewrites_weights]
    if rewriting and is_a(parts.strategy, KEEPS_STATE):
        raise RebasinError(
            f"{', '.join(rewriting)} rewrites weights after {type(parts.strategy).__name__} has aggregated, which "
            "keeps its own copy of the global model and would undo it: use FedAvg inside, or buffers only"
        )


def finish(
    current: Round,
    calibrators: Sequence[Calibrator],
    probes: Sequence[Probe],
    arrays: ArrayRecord,
    template: Template,
    measured: dict[str, float],
) -> ArrayRecord:
    """Run calibrators in order, then probes; what they measure is added to ``measured``.

    A calibrator without usable statistics leaves the model as it was, a probe that fails changes nothing; either is
    counted as ``NAME-failed``.

    Returns:
        the model after the last calibrator; ``arrays`` itself if there is none.
    """
    for calibrator in calibrators:
        name = type(calibrator).__name__
        try:
            calibrated = calibrator(current)
        except RebasinError as error:
            log(WARNING, "%s: %s; the model stays as it was before", name, error)
            measured[f"{_kebab(name)}-failed"] = 1.0
            continue
        current = replace(current, state=calibrated.state)
        measured.update(calibrated.metrics)
    for probe in probes:
        name = type(probe).__name__
        try:
            measured.update(probe(current))
        except Exception as error:  # a measurement must never end a round
            log(WARNING, "%s failed in round %d: %s", name, current.server_round, error)
            measured[f"{_kebab(name)}-failed"] = 1.0
    return template.encode(current.state) if calibrators else arrays


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")
