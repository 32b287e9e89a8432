"""The IDX files of MNIST and Fashion-MNIST, gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedrebasin.errors import DataError

UNSIGNED_BYTE = 0x08
# A deflate stream cannot expand by more than this, so a small file cannot announce a huge array.
MAX_EXPANSION = 1032


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes with ``dims`` dimensions.

    The header is checked against the size of the file before anything is allocated.

    Raises:
        DataError: if the file is not one, is cut off, or goes on after its end.
    """
    try:
        zipped = path.suffix == ".gz"
        available = path.stat().st_size * (MAX_EXPANSION if zipped else 1)
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _read(cast(BinaryIO, file), path, dims, available)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _read(file: BinaryIO, path: Path, dims: int, available: int) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:4] != bytes((0, 0, UNSIGNED_BYTE, dims)):
        raise DataError(f"{path}: not an IDX file of unsigned bytes with {dims} dimension{'s' if dims > 1 else ''}")
    shape = struct.unpack(f">{dims}I", header[4:])
    size = math.prod(shape)
    if size == 0 or size > available:
        raise DataError(f"{path}: its header announces {shape}, which the file cannot hold")
    data = file.read(size + 1)
    if len(data) != size:
        raise DataError(f"{path}: {'cut off' if len(data) < size else 'longer than'} its announced {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)
