"""What comes after the inner strategy: calibrators change the aggregate, probes look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import WARNING

from flwr.app import ArrayRecord
from flwr.common import log

from fedrebasin.errors import RebasinError

from ..replies import Template
from .round import Calibrator, Probe, Round


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
        current = replace(current, state=calibrated.state, merge=calibrated.merge or current.merge)
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
