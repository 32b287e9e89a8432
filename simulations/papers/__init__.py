"""The experiments of the four papers, each a function from a lab and a setting to numbers beside the paper's."""

from . import (
    counterexamples,
    failures,
    git_rebasin,
    git_rebasin_merges,
    greedy,
    lewc,
    lewc_controls,
    lewc_more,
    llfc,
    llfc_conditions,
    plane,
    simultaneous,
    sparse,
)
from .lab import Lab
from .recipe import Recipe
from .registry import EXPERIMENTS, SCALES, Experiment, Setting, experiment, reproduce
from .result import Chart, Claim, Figure, Line, Plane, Record, Result

__all__ = [
    "EXPERIMENTS",
    "SCALES",
    "Chart",
    "Claim",
    "Experiment",
    "Figure",
    "Lab",
    "Line",
    "Plane",
    "Recipe",
    "Record",
    "Result",
    "Setting",
    "experiment",
    "reproduce",
]
