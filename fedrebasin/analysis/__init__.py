"""Why a merge works or fails: barriers, features, spectra, permutations, trajectories, sparse nets, landscapes."""

from fedrebasin.analysis.additivity import (
    Additivity,
    Overlap,
    UnitActivity,
    active_overlap,
    unit_activity,
    weak_additivity,
)
from fedrebasin.analysis.barrier import Barrier, Definition, barrier_value, interpolate, loss_barrier
from fedrebasin.analysis.commutativity import (
    Commutativity,
    CommutativityObjective,
    FeatureDistances,
    commutativity,
    commutativity_objective,
    compare_matchers,
)
from fedrebasin.analysis.connectivity import ErrorBound, LayerConnectivity, feature_connectivity, lemma_1
from fedrebasin.analysis.features import Recorded, layer_features, layers_of, record_activations, record_layers
from fedrebasin.analysis.flatness import Flatness, flatness, random_permutation_barriers, step_of_equal_length
from fedrebasin.analysis.landscape import Landscape, loss_plane
from fedrebasin.analysis.midpoint import Halfway, HalfwayConnectivity
from fedrebasin.analysis.orthogonality import Orthogonality, reciprocal_orthogonality
from fedrebasin.analysis.partial import (
    FixedPoints,
    fixed_points,
    partial_barriers,
    partial_permutation,
    partial_permutations,
)
from fedrebasin.analysis.path import PathEvaluation
from fedrebasin.analysis.sparsity import (
    Pruned,
    apply_mask,
    dense_mask,
    iterative_pruning,
    mask_agreement,
    one_shot_pruning,
    prunable,
    prune_smallest,
    sparsity_of,
    transport_mask,
)
from fedrebasin.analysis.spectrum import Spectrum, activation_spectra, singular_values, stable_rank, weight_spectra
from fedrebasin.analysis.stitching import stitching
from fedrebasin.analysis.streams import Spread
from fedrebasin.analysis.trajectories import (
    PairBarriers,
    StrongConnectivity,
    instability,
    simultaneous_connectivity,
    strong_connectivity,
    weak_connectivity,
)

__all__ = [
    "Additivity",
    "Barrier",
    "Commutativity",
    "CommutativityObjective",
    "Definition",
    "ErrorBound",
    "FeatureDistances",
    "FixedPoints",
    "Flatness",
    "Halfway",
    "HalfwayConnectivity",
    "Landscape",
    "LayerConnectivity",
    "Orthogonality",
    "Overlap",
    "PairBarriers",
    "PathEvaluation",
    "Pruned",
    "Recorded",
    "Spectrum",
    "Spread",
    "StrongConnectivity",
    "UnitActivity",
    "activation_spectra",
    "active_overlap",
    "apply_mask",
    "barrier_value",
    "commutativity",
    "commutativity_objective",
    "compare_matchers",
    "dense_mask",
    "feature_connectivity",
    "fixed_points",
    "flatness",
    "instability",
    "interpolate",
    "iterative_pruning",
    "layer_features",
    "layers_of",
    "lemma_1",
    "loss_barrier",
    "loss_plane",
    "mask_agreement",
    "one_shot_pruning",
    "partial_barriers",
    "partial_permutation",
    "partial_permutations",
    "prunable",
    "prune_smallest",
    "random_permutation_barriers",
    "reciprocal_orthogonality",
    "record_activations",
    "record_layers",
    "simultaneous_connectivity",
    "singular_values",
    "sparsity_of",
    "stable_rank",
    "step_of_equal_length",
    "stitching",
    "strong_connectivity",
    "transport_mask",
    "unit_activity",
    "weak_additivity",
    "weak_connectivity",
    "weight_spectra",
]
