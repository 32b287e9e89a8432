"""What is done to a round's aggregate, and what that may change."""

from .activation_alignment import ActivationAlignment
from .calibrators import BatchNormRecalibration, Repair, TemperatureCalibration
from .gathering import TIMEOUT, summed
from .regression import HeadRegression, RegMean, SequentialRegression
from .round import Calibrated, Calibrator, Probe, Round, need_models
from .run_parts import calibrate, measure, with_metrics

__all__ = [
    "TIMEOUT",
    "ActivationAlignment",
    "BatchNormRecalibration",
    "Calibrated",
    "Calibrator",
    "HeadRegression",
    "Probe",
    "RegMean",
    "Repair",
    "Round",
    "SequentialRegression",
    "TemperatureCalibration",
    "calibrate",
    "measure",
    "need_models",
    "summed",
    "with_metrics",
]
