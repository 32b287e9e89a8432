"""After the merge: what sums over data that stay where they are turn a merged model into."""

from fedrebasin.calibration.batch_norm import batch_norms, recalibrate_batch_norm, with_moments
from fedrebasin.calibration.head import RidgeHead, ridge_head
from fedrebasin.calibration.regression import RegressionMean, regression_mean
from fedrebasin.calibration.reliability import (
    Reliability,
    ReliabilityBins,
    expected_calibration_error,
    reliability_bins,
)
from fedrebasin.calibration.repair import (
    fold_correction,
    interpolated_moments,
    permute_moments,
    repair,
    repairable_weights,
)
from fedrebasin.calibration.sequential import regressed_layer, sequential_regression
from fedrebasin.calibration.temperature import fit_temperature, fold_temperature

__all__ = [
    "RegressionMean",
    "Reliability",
    "ReliabilityBins",
    "RidgeHead",
    "batch_norms",
    "expected_calibration_error",
    "fit_temperature",
    "fold_correction",
    "fold_temperature",
    "interpolated_moments",
    "permute_moments",
    "recalibrate_batch_norm",
    "regressed_layer",
    "regression_mean",
    "reliability_bins",
    "repair",
    "repairable_weights",
    "ridge_head",
    "sequential_regression",
    "with_moments",
]
