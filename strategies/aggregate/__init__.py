# mypy: implicit-reexport
"""From good replies to an aggregate: aligned, then averaged by the inner strategy or at once."""

from .aggregation import Aggregate, Aggregation
from .alignment import ReplyAlignment
