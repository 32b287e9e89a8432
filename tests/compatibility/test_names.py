"""Every public name of 0.1 can still be imported; what moved says where it is now, and is offered there."""

import importlib
import warnings

import pytest

import fedrebasin

#: The three ``__all__`` of 0.1.0.
NAMES = {
    "fedrebasin": """
        ActivationCorrelation ActivationMatching Additivity AlignTo Aligner Alignment AlreadyAligned Axis Barrier
        BatchNormMoments CalibrationError Call Closeness Commutativity CommutativityObjective CoverageWarning
        CycleConsistent DataError ErrorBound Evaluation Factor FeatureDistances FixedPoints Flatness GramMatrices
        Group Halfway HalfwayConnectivity HeadSums Identity Landscape LayerConnectivity LayerRegression Layout
        Matcher MatchingError Merge MergeError MergeMany Moments Orthogonality Overlap PairBarriers PathEvaluation
        Permutation PermutationSpec PreActivationMoments Pruned RebasinError RegressionMean Reliability
        ReliabilityBins RidgeHead Score SpecError Spectrum State Statistic StraightThrough StrongConnectivity Sums
        Temperature TemperatureCurve Trace TraceError UnitActivity Unpermuted Value WeightMatching
        activation_spectra active_overlap add_sums affine_weights ahead apply_mask average barrier_value check
        choose collect_sums commutativity commutativity_objective compare_matchers cosine coverage_gaps dense_mask
        ensemble_log_probabilities ensemble_logits evaluate expected_calibration_error feature_connectivity
        fit_temperature fixed_points flatness fold_correction fold_temperature head_weight instability interpolate
        interpolated_moments iterative_pruning layers_of lemma_1 logits_of loss_barrier loss_plane match_relations
        medoid mode_of one_shot_pruning partial_barriers partial_permutation partial_permutations permute_gram
        permute_moments random_permutation_barriers recalibrate_batch_norm reciprocal_orthogonality register_rule
        regressed_layer regression_mean reliability_bins repair repairable_weights ridge_head sequential_regression
        simultaneous_connectivity stable_rank started_from stitching strong_connectivity trace transport_mask
        unit_activity unit_places weak_additivity weak_connectivity weight_spectra with_moments
    """,
    "fedrebasin.strategies": """
        ActivationAlignment AlignMod Aligned AlignmentProbe BarrierProbe BatchNormRecalibration Calibrated
        Calibrator CheckpointError ConnectivityProbe FedMergeMany FedRebasin FedRegMean FedRidgeHead FedWideAvg
        Frames HeadRegression Options Probe RecordError RegMean Repair Reply Round SequentialRegression SetAside
        SpectrumProbe StatisticsMod StreamingGrid TemperatureCalibration Template pick_device register to_state
    """,
    "fedrebasin.simulations": """
        BASES CALIBRATORS COLUMNS DATASETS DEFAULT_STRATEGIES DEVICES ENGINES EXPERIMENTS INITS OPTIMIZERS
        PARTITIONS REFERENCES SCALES Bin Comparison Dataset Experiment Federation Figures InlineGrid Judge
        MovedUnits Origin Record ReplayGrid Result Row Setting SimulationConfig Study Summary cells compare
        dirichlet draw draw_paths enter_task expand from_partitioner iid in_words label_skew load_dataset
        make_client_app make_partition make_strategy on_engine parse_strategy read_idx read_results reproduce
        run_inline run_strategy run_study shards write_experiment write_page write_picture write_report
        write_results
    """,
}


@pytest.mark.parametrize("package", NAMES)
def test_a_name_of_0_1_is_still_there(package):
    module = importlib.import_module(package)
    for name in NAMES[package].split():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = getattr(module, name)
        if name in module.__all__:
            assert not said
            continue
        (warning,) = {str(one.message) for one in said}
        assert all(one.category is DeprecationWarning and one.filename == __file__ for one in said)
        old, home = warning.removesuffix(" now").split(" is called ")
        assert old == f"{package}.{name}"
        room, _, new = home.rpartition(".")
        assert getattr(importlib.import_module(room), new) is found
        assert new in getattr(importlib.import_module(room), "__all__", [new])


def test_importing_it_warns_whoever_imports_it():
    with pytest.warns(DeprecationWarning, match=r"fedrebasin\.analysis\.flatness now") as said:
        from fedrebasin import flatness  # noqa: F401
    assert {one.filename for one in said} == {__file__}


def test_what_never_was_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'layer_features'"):
        _ = fedrebasin.layer_features
    with pytest.raises(ImportError):
        from fedrebasin import nothing  # noqa: F401


def test_rooms_are_attributes_as_they_were():
    assert fedrebasin.analysis.flatness is importlib.import_module("fedrebasin.analysis").flatness
