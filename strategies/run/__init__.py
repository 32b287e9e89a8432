# mypy: implicit-reexport
"""What lasts longer than a round: a run, the nodes' coordinates, checkpoints, the inner strategy's memory."""

from .checkpoint import CheckpointError
from .checkpoints import Checkpoints
from .frames import Frames
from .inner_state import Memory
from .run import Run
