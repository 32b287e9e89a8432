"""What numpy writes before the numbers of an array."""

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy

from .errors import RecordError

MAX_HEADER = 10_000  # numpy's own limit; its header parser is not meant for longer ones
MAGIC = 16  # bytes before the header's text, at most


@lru_cache(maxsize=4096)
def usual_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the numbers of an array that lies in C order."""
    buffer = BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def parsed_header(key: str, data: bytes) -> tuple[int, bool, tuple[int, ...], np.dtype[Any]]:
    """Where the numbers begin, whether they lie in Fortran order, their shape and dtype, as the bytes have it.

    Raises:
        RecordError: if there is no header.
    """
    buffer = BytesIO(data)
    try:
        version = npy.read_magic(buffer)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read_header(buffer, max_header_size=MAX_HEADER)
    except Exception:  # the header is Python source: its parser fails in as many ways as Python's
        raise RecordError(f"{key}: malformed bytes") from None
    return buffer.tell(), fortran_order, tuple(shape), dtype
