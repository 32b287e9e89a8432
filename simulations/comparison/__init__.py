# mypy: implicit-reexport
"""Strategies side by side, over the same trained clients."""

from .compare import DEFAULT_STRATEGIES, compare
from .run_study import run_study
