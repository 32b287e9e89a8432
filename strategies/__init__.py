"""Flower strategies that align clients' models before they aggregate them."""

from .aligned import Aligned
from .calibrators import BatchNormRecalibration, Repair, Temperature
from .client import StatisticsMod, register
from .fed_merge_many import FedMergeMany
from .fed_rebasin import FedRebasin
from .fed_wide_avg import FedWideAvg
from .probes import AlignmentProbe, BarrierProbe, ConnectivityProbe, SpectrumProbe
from .records import RecordError, Template, to_state
from .regression import RegMean, RidgeHead, SequentialRegression
from .round import Calibrated, Calibrator, Probe, Round
from .screening import Reply, SetAside

__all__ = [
    "Aligned",
    "AlignmentProbe",
    "BarrierProbe",
    "BatchNormRecalibration",
    "Calibrated",
    "Calibrator",
    "ConnectivityProbe",
    "FedMergeMany",
    "FedRebasin",
    "FedWideAvg",
    "Probe",
    "RecordError",
    "RegMean",
    "Repair",
    "Reply",
    "RidgeHead",
    "Round",
    "SequentialRegression",
    "SetAside",
    "SpectrumProbe",
    "StatisticsMod",
    "Temperature",
    "Template",
    "register",
    "to_state",
]
