"""fedrebasin: permutation-aligned federated learning, a Flower plugin.

The library (this package) needs torch, numpy and scipy only; ``fedrebasin.strategies`` plugs it into Flower and
``fedrebasin.simulations`` runs and compares federations. What most need is importable from here, everything from the
rooms (``fedrebasin.analysis``, ``fedrebasin.calibration``, ...). Names are loaded when they are first asked for.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

from fedrebasin.errors import deprecated as _deprecated

# isort: off
if TYPE_CHECKING:  # the same names as below; "X as X" offers them to type checkers
    from fedrebasin.analysis import (
        Barrier as Barrier,
        commutativity as commutativity,
        feature_connectivity as feature_connectivity,
        interpolate as interpolate,
        loss_barrier as loss_barrier,
        stitching as stitching,
        weak_additivity as weak_additivity,
    )
    from fedrebasin.calibration import (
        expected_calibration_error as expected_calibration_error,
        fit_temperature as fit_temperature,
        fold_temperature as fold_temperature,
        recalibrate_batch_norm as recalibrate_batch_norm,
        regression_mean as regression_mean,
        repair as repair,
        ridge_head as ridge_head,
        sequential_regression as sequential_regression,
    )
    from fedrebasin.errors import (
        CalibrationError as CalibrationError,
        CoverageWarning as CoverageWarning,
        DataError as DataError,
        MatchingError as MatchingError,
        MergeError as MergeError,
        RebasinError as RebasinError,
        SpecError as SpecError,
        TraceError as TraceError,
    )
    from fedrebasin.files import merge_files as merge_files
    from fedrebasin.matching import (
        ActivationMatching as ActivationMatching,
        Alignment as Alignment,
        AlreadyAligned as AlreadyAligned,
        History as History,
        Matcher as Matcher,
        StraightThrough as StraightThrough,
        WeightMatching as WeightMatching,
    )
    from fedrebasin.merging import (
        Aligner as Aligner,
        AlignTo as AlignTo,
        CycleConsistent as CycleConsistent,
        Identity as Identity,
        Merge as Merge,
        MergeMany as MergeMany,
        average as average,
        medoid as medoid,
    )
    from fedrebasin.spec import (
        Axis as Axis,
        Group as Group,
        Permutation as Permutation,
        PermutationSpec as PermutationSpec,
    )
    from fedrebasin.state import State as State
    from fedrebasin.sums import (
        Statistic as Statistic,
        collect_sums as collect_sums,
        evaluate as evaluate,
    )
# isort: on

__version__ = "0.2.0"

# In a checkout strategies/ and simulations/ lie beside this folder, in a wheel inside it.
_here = _Path(__file__).resolve().parent
if not (_here / "strategies").is_dir():
    __path__.append(str(_here.parent))

_OFFERED = {
    "analysis": "Barrier commutativity feature_connectivity interpolate loss_barrier stitching weak_additivity",
    "calibration": """
        expected_calibration_error fit_temperature fold_temperature recalibrate_batch_norm regression_mean
        repair ridge_head sequential_regression
    """,
    "errors": "CalibrationError CoverageWarning DataError MatchingError MergeError RebasinError SpecError TraceError",
    "files": "merge_files",
    "matching": "ActivationMatching Alignment AlreadyAligned History Matcher StraightThrough WeightMatching",
    "merging": "AlignTo Aligner CycleConsistent Identity Merge MergeMany average medoid",
    "spec": "Axis Group Permutation PermutationSpec",
    "state": "State",
    "sums": "Statistic collect_sums evaluate",
}
#: What 0.1 had here and is only in its room now.
_MOVED = {
    "analysis": """
        Additivity Commutativity CommutativityObjective ErrorBound FeatureDistances FixedPoints Flatness Halfway
        HalfwayConnectivity Landscape LayerConnectivity Orthogonality Overlap PairBarriers PathEvaluation Pruned
        Spectrum StrongConnectivity UnitActivity activation_spectra active_overlap apply_mask barrier_value
        commutativity_objective compare_matchers dense_mask fixed_points flatness instability iterative_pruning
        layers_of lemma_1 loss_plane one_shot_pruning partial_barriers partial_permutation partial_permutations
        random_permutation_barriers reciprocal_orthogonality simultaneous_connectivity stable_rank
        strong_connectivity transport_mask unit_activity weak_connectivity weight_spectra
    """,
    "calibration": """
        RegressionMean Reliability ReliabilityBins RidgeHead fold_correction interpolated_moments permute_moments
        regressed_layer reliability_bins repairable_weights with_moments
    """,
    "errors": "choose",
    "matching": "match_relations",
    "merging": "cosine started_from",
    "running": "mode_of",
    "spec": "Factor Layout Unpermuted coverage_gaps",
    "sums": """
        ActivationCorrelation BatchNormMoments Evaluation GramMatrices HeadSums LayerRegression Moments
        PreActivationMoments Score Sums Temperature TemperatureCurve add_sums ensemble_log_probabilities
        ensemble_logits logits_of permute_gram
    """,
    "threads": "ahead",
    "tracing": "Call Value check register_rule trace",
    "watching": "affine_weights head_weight unit_places",
}
_RENAMED = {"Closeness": "Alignment", "Trace": "History"}

_HOMES = {name: f"{__name__}.{room}" for room, names in _OFFERED.items() for name in names.split()}
_FORMER_HOMES = {name: f"{__name__}.{room}" for room, names in _MOVED.items() for name in names.split()}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:  # a type checker knows the names above, and finds the others in their rooms only

    def __getattr__(name: str) -> _Any:
        if name in _HOMES:
            return globals().setdefault(name, getattr(_import_module(_HOMES[name]), name))
        if name in _RENAMED:
            _deprecated(f"{__name__}.{name}", f"{__name__}.{_RENAMED[name]}")
            return __getattr__(_RENAMED[name])
        if name in _FORMER_HOMES:
            _deprecated(f"{__name__}.{name}", f"{_FORMER_HOMES[name]}.{name}")
            return getattr(_import_module(_FORMER_HOMES[name]), name)
        if name in _OFFERED or name in _MOVED:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
