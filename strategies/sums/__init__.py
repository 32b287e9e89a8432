"""How statistics and their sums travel, and which of them a client answers."""

from .encoding import ACTION, MODEL, QUERY, STATISTIC, SUMS, encode_sums, read_max_examples, read_statistic
from .query import Question, ask

__all__ = [
    "ACTION",
    "MODEL",
    "QUERY",
    "STATISTIC",
    "SUMS",
    "Question",
    "ask",
    "encode_sums",
    "read_max_examples",
    "read_statistic",
]
