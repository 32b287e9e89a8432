"""Matching: from a pair of models to the permutation that aligns them."""

from fedrebasin.matching.activation import ActivationMatching, match_relations
from fedrebasin.matching.alignment import Alignment, History, Matcher, State
from fedrebasin.matching.already_aligned import AlreadyAligned, Closeness
from fedrebasin.matching.control import Control, Progress
from fedrebasin.matching.coordinate import climb
from fedrebasin.matching.frank_wolfe import relaxable
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.starts import orders_by_signatures
from fedrebasin.matching.steps import WarmAssignment, assign
from fedrebasin.matching.straight_through import StraightThrough
from fedrebasin.matching.weight import Method, WeightMatching

__all__ = [
    "ActivationMatching",
    "Alignment",
    "AlreadyAligned",
    "Closeness",
    "Control",
    "History",
    "Indices",
    "Matcher",
    "Method",
    "Problem",
    "Progress",
    "State",
    "StraightThrough",
    "WarmAssignment",
    "WeightMatching",
    "assign",
    "climb",
    "match_relations",
    "orders_by_signatures",
    "relaxable",
]
