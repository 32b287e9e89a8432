"""What lasts longer than a round: the nodes' coordinates, checkpoints, the inner strategy's memory."""

from .checkpoint import CheckpointError
from .frames import Frames
from .resume import Journal

__all__ = [
    "CheckpointError",
    "Frames",
    "Journal",
]
