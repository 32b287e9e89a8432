"""The options that every strategy of this package takes, whatever else it takes."""

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

import torch

from .round import Calibrator, Probe
from .run import Frames
from .tracking import Log


class Options(TypedDict, total=False):
    """Handed on to :class:`fedrebasin.strategies.Aligned`, where they are described."""

    calibrators: Sequence[Calibrator]
    probes: Sequence[Probe]
    device: str | torch.device
    frame: Literal["server", "client"] | Frames
    streaming: bool
    workers: int
    max_weight_ratio: float | None
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    keep_memory: bool
    query_type: str
    log: Log | None
    sends: Literal["model", "update"]


#: What cannot be changed once it is set.
SETTINGS = {"strategy", "aligner", *Options.__annotations__} - {"frame", "checkpoint"}


def calibrating(options: Options, before: Sequence[Calibrator] = (), after: Sequence[Calibrator] = ()) -> Options:
    """The options with more calibrators: some before those that were asked for, some after them."""
    changed = options.copy()
    changed["calibrators"] = (*before, *options.get("calibrators", ()), *after)
    return changed
