"""Federations to compare strategies in: data sets, partitions, one Flower app, and the comparison."""

from .inline import InlineGrid, run_inline

__all__ = [
    "InlineGrid",
    "run_inline",
]
