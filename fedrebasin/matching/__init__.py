"""Matching: from a pair of models to the permutation that aligns them."""

from fedrebasin.matching.activation import ActivationMatching
from fedrebasin.matching.alignment import Alignment, Matcher, State, Trace
from fedrebasin.matching.already_aligned import AlreadyAligned
from fedrebasin.matching.straight_through import StraightThrough
from fedrebasin.matching.weight import WeightMatching

__all__ = [
    "ActivationMatching",
    "Alignment",
    "AlreadyAligned",
    "Matcher",
    "State",
    "StraightThrough",
    "Trace",
    "WeightMatching",
]
