"""Room for large tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Entries. Tensors of more are worked through in pieces of so many, so that no copy of them is needed.
LARGE = 2**22

_LARGE_BYTES = 2**20


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``, faster to fill on a CPU where it is large.

    The first touch of a fresh small page costs more than what is written to it; numpy asks the kernel for huge pages,
    which halves the time of copying a tensor of 1 MB and more.

    Args:
        shape: of the tensor.
        dtype: of its entries, which are arbitrary.
        device: where it lies.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE_BYTES:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).reshape(tuple(shape))
