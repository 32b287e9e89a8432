"""Checkpoints as they lie on disks."""

from fedrebasin.files.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
