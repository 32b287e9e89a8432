# mypy: implicit-reexport
"""From good replies to an aggregate: aligned, then averaged by the inner strategy or at once."""

from .aggregate import Aggregate
from .aggregation import Aggregation
from .alignment import ReplyAlignment
