"""Flower strategies that align clients' models before they aggregate them."""

from .align_mod import AlignMod
from .aligned import Aligned
from .alignment_probe import AlignmentProbe
from .arrivals import StreamingGrid
from .calibrators import BatchNormRecalibration, Repair, TemperatureCalibration
from .checkpoint import CheckpointError
from .client import StatisticsMod, register
from .device import pick_device
from .frames import Frames
from .named import FedMergeMany, FedRebasin, FedRegMean, FedRidgeHead, FedWideAvg
from .options import Options
from .probes import BarrierProbe, ConnectivityProbe
from .realignment import ActivationAlignment
from .records import RecordError, Template, to_state
from .regression import HeadRegression, RegMean, SequentialRegression
from .round import Calibrated, Calibrator, Probe, Round
from .screening import Reply, SetAside
from .spectrum_probe import SpectrumProbe

__all__ = [
    "ActivationAlignment",
    "AlignMod",
    "Aligned",
    "AlignmentProbe",
    "BarrierProbe",
    "BatchNormRecalibration",
    "Calibrated",
    "Calibrator",
    "CheckpointError",
    "ConnectivityProbe",
    "FedMergeMany",
    "FedRebasin",
    "FedRegMean",
    "FedRidgeHead",
    "FedWideAvg",
    "Frames",
    "HeadRegression",
    "Options",
    "Probe",
    "RecordError",
    "RegMean",
    "Repair",
    "Reply",
    "Round",
    "SequentialRegression",
    "SetAside",
    "SpectrumProbe",
    "StatisticsMod",
    "StreamingGrid",
    "TemperatureCalibration",
    "Template",
    "pick_device",
    "register",
    "to_state",
]
