"""Flower strategies that align clients' models before they aggregate them."""

from fedrebasin.devices import pick_device

from .aligned import Aligned
from .clients import AlignMod, StatisticsMod, register
from .named import FedMergeMany, FedRebasin, FedRegMean, FedRidgeHead, FedWideAvg
from .options import Options
from .probes import AlignmentProbe, BarrierProbe, ConnectivityProbe, SpectrumProbe
from .replies import FormError, RecordError, Reply, SetAside, StreamingGrid, Template, to_state
from .round import (
    ActivationAlignment,
    BatchNormRecalibration,
    Calibrated,
    Calibrator,
    HeadRegression,
    Probe,
    RegMean,
    Repair,
    Round,
    SequentialRegression,
    TemperatureCalibration,
)
from .run import CheckpointError, Frames
from .tracking import MLflowLogger, TensorBoardLogger, WandbLogger

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
    "FormError",
    "Frames",
    "HeadRegression",
    "MLflowLogger",
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
    "TensorBoardLogger",
    "WandbLogger",
    "pick_device",
    "register",
    "to_state",
]
