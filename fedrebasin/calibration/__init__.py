"""After the merge: BatchNorm statistics, temperature and reliability, from sums over data that stay where they are."""

from fedrebasin.calibration.affine import (
    AffineCall,
    affine_matrix,
    affine_weights,
    bias_of,
    head_weight,
    watch,
    with_affine_matrix,
)
from fedrebasin.calibration.batch_norm import BatchNormMoments, Moments, recalibrate_batch_norm, with_moments
from fedrebasin.calibration.correlation import (
    ActivationCorrelation,
    unit_places,
)
from fedrebasin.calibration.evaluation import (
    Evaluation,
    Score,
    ensemble_log_probabilities,
    ensemble_logits,
    evaluate,
    logits_of,
)
from fedrebasin.calibration.gram import GramMatrices, demand_positive, feature_order, permute_gram, unit_order
from fedrebasin.calibration.reliability import (
    Reliability,
    ReliabilityBins,
    expected_calibration_error,
    reliability_bins,
)
from fedrebasin.calibration.repair import (
    PreActivationMoments,
    fold_correction,
    interpolated_moments,
    permute_moments,
    repair,
    repairable_weights,
)
from fedrebasin.calibration.sums import Statistic, Sums, add_sums, collect_sums, demand, demand_data
from fedrebasin.calibration.temperature import Temperature, TemperatureCurve, fit_temperature, fold_temperature

__all__ = [
    "ActivationCorrelation",
    "AffineCall",
    "BatchNormMoments",
    "Evaluation",
    "GramMatrices",
    "Moments",
    "PreActivationMoments",
    "Reliability",
    "ReliabilityBins",
    "Score",
    "Statistic",
    "Sums",
    "Temperature",
    "TemperatureCurve",
    "add_sums",
    "affine_matrix",
    "affine_weights",
    "bias_of",
    "collect_sums",
    "demand",
    "demand_data",
    "demand_positive",
    "ensemble_log_probabilities",
    "ensemble_logits",
    "evaluate",
    "expected_calibration_error",
    "feature_order",
    "fit_temperature",
    "fold_correction",
    "fold_temperature",
    "head_weight",
    "interpolated_moments",
    "logits_of",
    "permute_gram",
    "permute_moments",
    "recalibrate_batch_norm",
    "reliability_bins",
    "repair",
    "repairable_weights",
    "unit_order",
    "unit_places",
    "watch",
    "with_affine_matrix",
    "with_moments",
]
