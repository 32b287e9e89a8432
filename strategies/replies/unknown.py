"""Replies of which only the inner strategy knows what they hold: sub-models, trees, arrays of any shape."""

import math

import numpy as np
from flwr.app import Array, ArrayRecord

from .errors import RecordError
from .header import parsed_header
from .records import FLOATS, NUMPY, decode_array, demand_shape, own_form


def demand_sane(record: ArrayRecord) -> None:
    """Refuse arrays whose bytes are not what they say, and floats that are not finite; all else may be of any kind.

    What is not serialised as numpy does it is not read: whoever understands it may.

    Raises:
        RecordError: naming the array.
    """
    for key, array in record.items():
        if array.stype == NUMPY and array.dtype in FLOATS:
            decode_array(key, array, own_form(key, array, FLOATS))
        elif array.stype == NUMPY:
            _demand_sane_bytes(key, array)


def _demand_sane_bytes(key: str, array: Array) -> None:
    start, _, shape, dtype = parsed_header(key, array.data)
    demand_shape(key, shape)
    size = math.prod(shape) * dtype.itemsize
    if shape != tuple(array.shape) or dtype.hasobject or not dtype.itemsize or len(array.data) - start != size:
        raise RecordError(f"{key}: the bytes are not those of {tuple(array.shape)} numbers of {array.dtype}")
    if dtype.kind in "fc" and size and not np.isfinite(np.frombuffer(array.data, dtype=dtype, offset=start)).all():
        raise RecordError(f"{key}: not finite")
