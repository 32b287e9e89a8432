# mypy: implicit-reexport
"""Bytes to state dicts and back: decoded without trust, screened, streamed."""

from .agreement import Agreement, agreement
from .integers import agreed, alike, dissent, moving_integers
from .norms import Proportions, demand_ratio, median_of_others
from .outliers import Margin, margins, of_usual_length, outliers
from .records import FLOATS, Form, RecordError, Template, decode_array, decode_record, own_form, to_state
from .reply import Reply, carrying, messages
from .screening import FIRST, MAX_EXAMPLES, Screener, SetAside
from .streaming import StreamingGrid, send_and_stream
