"""Matching: from a pair of models to the permutation that aligns them."""

from fedrebasin.matching.activation import ActivationMatching, match_relations
from fedrebasin.matching.alignment import Alignment, History, Matcher, Step
from fedrebasin.matching.already_aligned import AlreadyAligned
from fedrebasin.matching.control import Control, Progress
from fedrebasin.matching.frank_wolfe import relaxable
from fedrebasin.matching.problem import Indices, Problem
from fedrebasin.matching.starts import orders_by_signatures
from fedrebasin.matching.steps import WarmAssignment, assign
from fedrebasin.matching.straight_through import StraightThrough
from fedrebasin.matching.weight import MethodName, WeightMatching

__all__ = [
    "ActivationMatching",
    "Alignment",
    "AlreadyAligned",
    "Control",
    "History",
    "Indices",
    "Matcher",
    "MethodName",
    "Problem",
    "Progress",
    "Step",
    "StraightThrough",
    "WarmAssignment",
    "WeightMatching",
    "assign",
    "match_relations",
    "orders_by_signatures",
    "relaxable",
]
