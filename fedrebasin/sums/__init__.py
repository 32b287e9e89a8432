"""What clients may be asked for: the algebra of sums, one file for each statistic, and a registry of them."""

from fedrebasin.sums.algebra import (
    EXAMPLES,
    ROWS_PER_EXAMPLE,
    Statistic,
    Sums,
    add_sums,
    collect_sums,
    demand,
    demand_data,
    demand_rows,
    scaled,
    sizes_of,
)
from fedrebasin.sums.batch_norm import BatchNormMoments
from fedrebasin.sums.correlation import ActivationCorrelation, mean_products
from fedrebasin.sums.evaluation import (
    Evaluation,
    Score,
    demand_losses,
    ensemble_log_probabilities,
    ensemble_logits,
    evaluate,
    logits_of,
)
from fedrebasin.sums.gram import GramMatrices, permute_gram, unit_order
from fedrebasin.sums.head import HeadSums
from fedrebasin.sums.layer_regression import LayerRegression
from fedrebasin.sums.moments import Moments, correction
from fedrebasin.sums.pre_activations import PreActivationMoments
from fedrebasin.sums.temperature import Temperature, TemperatureCurve, check_logits, loss_terms

__all__ = [
    "EXAMPLES",
    "ROWS_PER_EXAMPLE",
    "ActivationCorrelation",
    "BatchNormMoments",
    "Evaluation",
    "GramMatrices",
    "HeadSums",
    "LayerRegression",
    "Moments",
    "PreActivationMoments",
    "Score",
    "Statistic",
    "Sums",
    "Temperature",
    "TemperatureCurve",
    "add_sums",
    "check_logits",
    "collect_sums",
    "correction",
    "demand",
    "demand_data",
    "demand_losses",
    "demand_rows",
    "ensemble_log_probabilities",
    "ensemble_logits",
    "evaluate",
    "logits_of",
    "loss_terms",
    "mean_products",
    "permute_gram",
    "scaled",
    "sizes_of",
    "unit_order",
]
