# mypy: implicit-reexport
"""Bytes to state dicts and back: decoded without trust, screened, streamed."""

from .agreement import Agreement, agreement
from .alongside import alongside_in, model_in, names_along, permuted_record
from .errors import FormError, RecordError
from .integers import agreed, alike, dissent, moving_integers
from .norms import Proportions, demand_ratio, median_of_others
from .outliers import Margin, margins, of_usual_length, outliers
from .reading import MAX_EXAMPLES
from .records import FLOATS, Form, Template, decode_array, decode_record, own_form, sizes_of, to_state
from .reply import Reply, carrying, containing
from .screening import FIRST, Screener, SetAside
from .streaming import StreamingGrid, send_and_stream
from .unknown import demand_sane
from .updates import Updates, demand_model, looks_like_update
