"""Matching: from a pair of models to the permutation that aligns them."""

from fedrebasin.matching.alignment import Alignment, Matcher, State, Trace
from fedrebasin.matching.weight import WeightMatching

__all__ = ["Alignment", "Matcher", "State", "Trace", "WeightMatching"]
