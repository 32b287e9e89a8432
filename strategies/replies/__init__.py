"""Bytes to state dicts and back: decoded without trust, screened, streamed."""

from .integers import agreed, alike, dissent, moving_integers
from .outliers import expecting_fewer, expects_attackers, of_usual_length, strangers
from .records import FLOATS, Form, RecordError, State, Template, decode_array, to_state
from .screening import MAX_EXAMPLES, Reply, Screener, SetAside, carrying, find_attribute, form_of, is_a, unwrap
from .streaming import StreamingGrid, arrivals

__all__ = [
    "FLOATS",
    "MAX_EXAMPLES",
    "Form",
    "RecordError",
    "Reply",
    "Screener",
    "SetAside",
    "State",
    "StreamingGrid",
    "Template",
    "agreed",
    "alike",
    "arrivals",
    "carrying",
    "decode_array",
    "dissent",
    "expecting_fewer",
    "expects_attackers",
    "find_attribute",
    "form_of",
    "is_a",
    "moving_integers",
    "of_usual_length",
    "strangers",
    "to_state",
    "unwrap",
]
