# mypy: implicit-reexport
"""Local training, deterministic, and the federation that follows from a config."""

from .federation import Federation
from .training import derive_seed, predict, reproducible, train
