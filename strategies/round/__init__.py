# mypy: implicit-reexport
"""What is done to a round's aggregate, and what that may change."""

from .activation_alignment import ActivationAlignment
from .calibrators import BatchNormRecalibration, Repair, TemperatureCalibration
from .gathering import TIMEOUT
from .gathering import summed as summed
from .regression import HeadRegression, RegMean, SequentialRegression
from .round import Calibrated, Calibrator, Probe, Round, need_models
from .run_parts import calibrate, measure, with_metrics
