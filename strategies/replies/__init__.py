"""Bytes to state dicts and back: decoded without trust, screened, streamed."""

from .agreement import Agreement, agreement
from .integers import agreed, alike, dissent, moving_integers
from .norms import Proportions, demand_ratio
from .outliers import Margin, margins, of_usual_length, outliers
from .records import FLOATS, Form, RecordError, Template, decode_array, to_state
from .reply import Reply, carrying
from .screening import MAX_EXAMPLES, Screener, SetAside
from .streaming import StreamingGrid, send_and_stream

__all__ = [
    "FLOATS",
    "MAX_EXAMPLES",
    "Agreement",
    "Form",
    "Margin",
    "Proportions",
    "RecordError",
    "Reply",
    "Screener",
    "SetAside",
    "StreamingGrid",
    "Template",
    "agreed",
    "agreement",
    "alike",
    "carrying",
    "decode_array",
    "demand_ratio",
    "dissent",
    "margins",
    "moving_integers",
    "of_usual_length",
    "outliers",
    "send_and_stream",
    "to_state",
]
