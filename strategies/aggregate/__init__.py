"""From good replies to an aggregate: aligned, then averaged by the inner strategy or at once."""

from .aggregation import Aggregate, Aggregation
from .stage import Stage

__all__ = [
    "Aggregate",
    "Aggregation",
    "Stage",
]
