"""Merging: from many models to one."""

from fedrebasin.merging.align_to import AlignTo
from fedrebasin.merging.average import average
from fedrebasin.merging.cycle_consistent import CycleConsistent
from fedrebasin.merging.identity import Identity
from fedrebasin.merging.medoid import medoid
from fedrebasin.merging.merge import Aligner, Merge, cosine
from fedrebasin.merging.merge_many import MergeMany
from fedrebasin.merging.regression import (
    RegressionMean,
    regression_mean,
)
from fedrebasin.merging.ridge_head import (
    HeadSums,
    RidgeHead,
    ridge_head,
)
from fedrebasin.merging.sequential import (
    LayerRegression,
    regressed_layer,
    sequential_regression,
)
from fedrebasin.merging.started_from import started_from

__all__ = [
    "AlignTo",
    "Aligner",
    "CycleConsistent",
    "HeadSums",
    "Identity",
    "LayerRegression",
    "Merge",
    "MergeMany",
    "RegressionMean",
    "RidgeHead",
    "average",
    "cosine",
    "medoid",
    "regressed_layer",
    "regression_mean",
    "ridge_head",
    "sequential_regression",
    "started_from",
]
