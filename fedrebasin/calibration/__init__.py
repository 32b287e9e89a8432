"""After the merge: BatchNorm statistics, temperature and reliability, from sums over data that stay where they are."""

from fedrebasin.calibration.batch_norm import BatchNormMoments, Moments, recalibrate_batch_norm
from fedrebasin.calibration.evaluation import (
    Evaluation,
    Score,
    ensemble_log_probabilities,
    ensemble_logits,
    evaluate,
    logits_of,
)
from fedrebasin.calibration.reliability import (
    Reliability,
    ReliabilityBins,
    expected_calibration_error,
    reliability_bins,
)
from fedrebasin.calibration.sums import Statistic, Sums, add_sums, collect_sums
from fedrebasin.calibration.temperature import Temperature, fit_temperature

__all__ = [
    "BatchNormMoments",
    "Evaluation",
    "Moments",
    "Reliability",
    "ReliabilityBins",
    "Score",
    "Statistic",
    "Sums",
    "Temperature",
    "add_sums",
    "collect_sums",
    "ensemble_log_probabilities",
    "ensemble_logits",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "logits_of",
    "recalibrate_batch_norm",
    "reliability_bins",
]
