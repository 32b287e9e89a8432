# mypy: implicit-reexport
"""The steps that matching is made of: an assignment, a gradient, the best move of nested groups."""

from fedrebasin.matching.steps.assignment import WarmAssignment, assign, assign_batch
from fedrebasin.matching.steps.gradient import Gradient
from fedrebasin.matching.steps.nested import best_move
