# mypy: implicit-reexport
"""How statistics and their sums travel."""

from .encoding import ACTION, MODEL, QUERY, STATISTIC, SUMS, encode_sums, read_max_examples, read_statistic
from .query import Question, ask
