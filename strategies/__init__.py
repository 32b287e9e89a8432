"""Flower strategies that align clients' models before they aggregate them."""

from .aligned import Aligned
from .calibrators import BatchNormRecalibration, Temperature
from .fed_merge_many import FedMergeMany
from .fed_rebasin import FedRebasin
from .fed_wide_avg import FedWideAvg
from .records import RecordError, Template, to_state
from .round import Calibrated, Calibrator, Probe, Round
from .screening import Reply, SetAside

__all__ = [
    "Aligned",
    "BatchNormRecalibration",
    "Calibrated",
    "Calibrator",
    "FedMergeMany",
    "FedRebasin",
    "FedWideAvg",
    "Probe",
    "RecordError",
    "Reply",
    "Round",
    "SetAside",
    "Temperature",
    "Template",
    "to_state",
]
