"""What is done to a round's aggregate, and what that may change."""

from .activation_alignment import ActivationAlignment
from .calibrators import BatchNormRecalibration, Repair, TemperatureCalibration
from .demands import need_models
from .finish import finish
from .gathering import TIMEOUT, summed
from .regression import HeadRegression, RegMean, SequentialRegression
from .round import Calibrated, Calibrator, Probe, Round

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
    "finish",
    "need_models",
    "summed",
]
