"""From good replies to an aggregate: aligned, then averaged by the inner strategy or at once."""

from .aggregation import Aggregate, Aggregation
from .alignment import ReplyAlignment
from .running_mean import needs_only_the_mean

__all__ = [
    "Aggregate",
    "Aggregation",
    "ReplyAlignment",
    "needs_only_the_mean",
]
