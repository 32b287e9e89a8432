"""What a check needs to know of that which it runs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor


class Trial(Protocol):
    """Something that was started, in one precision."""

    @property
    def precision(self) -> torch.dtype:
        """Of its numbers."""

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """What comes out for this state, as float64."""


class Runs(Protocol):
    """A model or a function, before it is started."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What a spec has to fit."""

    def started(self, seed: int) -> AbstractContextManager[tuple[Trial, dict[str, Tensor], list[Tensor]]]:
        """Random parameters and inputs: how to run them, the state, and its outputs."""
