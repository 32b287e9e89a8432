"""What clients may be asked for: the algebra of sums, and one file for each statistic."""

from fedrebasin.sums.algebra import EXAMPLES, Statistic, Sums, add_sums, collect_sums, demand, demand_data
from fedrebasin.sums.correlation import ActivationCorrelation, unit_places
from fedrebasin.sums.evaluation import (
    Evaluation,
    Score,
    ensemble_log_probabilities,
    ensemble_logits,
    evaluate,
    logits_of,
)
from fedrebasin.sums.gram import GramMatrices, demand_positive, feature_order, permute_gram, unit_order

__all__ = [
    "EXAMPLES",
    "ActivationCorrelation",
    "Evaluation",
    "GramMatrices",
    "Score",
    "Statistic",
    "Sums",
    "add_sums",
    "collect_sums",
    "demand",
    "demand_data",
    "demand_positive",
    "ensemble_log_probabilities",
    "ensemble_logits",
    "evaluate",
    "feature_order",
    "logits_of",
    "permute_gram",
    "unit_order",
    "unit_places",
]
