"""What comes after the inner strategy: calibrators change the aggregate, probes look at it."""

from collections.abc import Iterable
from dataclasses import replace
from logging import WARNING

from flwr.app import MetricRecord

from fedrebasin.errors import CalibrationError, reason

from ..flower import log
from .round import Calibrator, Probe, Round


def calibrate(round_: Round, calibrators: Iterable[Calibrator]) -> tuple[Round, dict[str, float]]:
    """The round after one calibrator after the other, and what they report.

    One without usable statistics leaves the model as it was and is counted as ``NAME-failed``.
    """
    measured: dict[str, float] = {}
    for calibrator in calibrators:
        name = type(calibrator).__name__
        try:
            calibrated = calibrator(round_)
            if not all(bool(tensor.isfinite().all()) for tensor in calibrated.state.values()):
                raise CalibrationError("the model is not finite any more")
        except Exception as error:  # of sums that strangers sent
            log(WARNING, "%s: %s; the model stays as it was before", name, reason(error))
            measured[f"{_kebab(name)}-failed"] = 1.0
            continue
        round_ = replace(round_, state=calibrated.state, merge=calibrated.merge or round_.merge)
        measured.update(calibrated.metrics)
    return round_, measured


def measure(round_: Round, probes: Iterable[Probe]) -> dict[str, float]:
    """What the probes say of a round; one that fails is counted as ``NAME-failed``."""
    measured: dict[str, float] = {}
    for probe in probes:
        name = type(probe).__name__
        try:
            measured.update(probe(round_))
        except Exception as error:  # a measurement must never end a round
            log(WARNING, "%s failed in round %d: %s", name, round_.server_round, error)
            measured[f"{_kebab(name)}-failed"] = 1.0
    return measured


def with_metrics(metrics: MetricRecord | None, measured: dict[str, float]) -> MetricRecord | None:
    """Flower's metrics and our own, whose names begin with ``rebasin-`` (but for ``beta``)."""
    if not measured:
        return metrics
    merged = MetricRecord() if metrics is None else MetricRecord(dict(metrics))
    for key, value in measured.items():
        merged[key if key == "beta" else f"rebasin-{key}"] = float(value)
    return merged


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")
