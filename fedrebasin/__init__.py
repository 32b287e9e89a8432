"""fedrebasin: permutation-aligned federated learning, a Flower plugin.

The library (this package) needs torch, numpy and scipy only; ``fedrebasin.strategies`` plugs it into Flower and
``fedrebasin.simulations`` runs and compares federations.
"""

from pathlib import Path as _Path

from fedrebasin.analysis import (
    Barrier,
    barrier_value,
    interpolate,
    loss_barrier,
)
from fedrebasin.axis import Axis, Factor, Layout
from fedrebasin.calibration import (
    BatchNormMoments,
    Evaluation,
    Moments,
    Reliability,
    ReliabilityBins,
    Score,
    Statistic,
    Sums,
    Temperature,
    add_sums,
    collect_sums,
    ensemble_log_probabilities,
    ensemble_logits,
    evaluate,
    expected_calibration_error,
    fit_temperature,
    logits_of,
    recalibrate_batch_norm,
    reliability_bins,
)
from fedrebasin.errors import (
    CalibrationError,
    DataError,
    MatchingError,
    MergeError,
    RebasinError,
    SpecError,
    TraceError,
)
from fedrebasin.group import Group, Unpermuted
from fedrebasin.matching import Alignment, Matcher, State, Trace, WeightMatching
from fedrebasin.merging import Aligner, AlignTo, Identity, Merge, MergeMany, average
from fedrebasin.permutation import Permutation
from fedrebasin.spec import PermutationSpec

__version__ = "0.1.0"

# In a checkout strategies/ and simulations/ lie beside this folder, in a wheel inside it.
_here = _Path(__file__).resolve().parent
if not (_here / "strategies").is_dir():
    __path__.append(str(_here.parent))

__all__ = [
    "AlignTo",
    "Aligner",
    "Alignment",
    "Axis",
    "Barrier",
    "BatchNormMoments",
    "CalibrationError",
    "DataError",
    "Evaluation",
    "Factor",
    "Group",
    "Identity",
    "Layout",
    "Matcher",
    "MatchingError",
    "Merge",
    "MergeError",
    "MergeMany",
    "Moments",
    "Permutation",
    "PermutationSpec",
    "RebasinError",
    "Reliability",
    "ReliabilityBins",
    "Score",
    "SpecError",
    "State",
    "Statistic",
    "Sums",
    "Temperature",
    "Trace",
    "TraceError",
    "Unpermuted",
    "WeightMatching",
    "add_sums",
    "average",
    "barrier_value",
    "collect_sums",
    "ensemble_log_probabilities",
    "ensemble_logits",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "interpolate",
    "logits_of",
    "loss_barrier",
    "recalibrate_batch_norm",
    "reliability_bins",
]
