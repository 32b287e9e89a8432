"""Checkpoints as they lie on disks, and merging them."""

from fedrebasin.files.calibrate import Calibration, Data, Progress
from fedrebasin.files.checkpoint_set import CheckpointSet, open_checkpoints
from fedrebasin.files.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from fedrebasin.files.diff import Difference, LayerDifference, diff_files
from fedrebasin.files.estimate import Estimate, estimate
from fedrebasin.files.folder import config_of
from fedrebasin.files.merge_files import merge_files
from fedrebasin.files.merged import MergedFile, MergedFiles
from fedrebasin.files.output import Output

__all__ = [
    "Calibration",
    "Checkpoint",
    "CheckpointSet",
    "Data",
    "Difference",
    "Estimate",
    "LayerDifference",
    "MergedFile",
    "MergedFiles",
    "Output",
    "Progress",
    "config_of",
    "diff_files",
    "estimate",
    "load_checkpoint",
    "merge_files",
    "open_checkpoints",
    "save_checkpoint",
]
