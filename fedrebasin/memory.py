"""Room for large tensors."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

#: Entries. Tensors of more are worked through in pieces of so many, so that no copy of them is needed.
LARGE = 2**22

_LARGE_BYTES = 2**20
_CACHED = 2**16


def pieces(*tensors: Tensor, size: int | None = None) -> Iterable[tuple[Tensor, ...]]:
    """Tensors of one shape as vectors, so many entries of each at a time; those that have no more come as they are.

    Args:
        tensors: all are copied whole that do not lie in one piece of memory; of the others the pieces are views.
        size: entries of a piece. By default as many as stay in the caches of the processor's cores, in float64: what is
            made of them need not go through the memory then, which takes five times as long. A GPU wants many at once.
    """
    if size is None:
        size = min(LARGE, _CACHED * torch.get_num_threads()) if tensors[0].device.type == "cpu" else LARGE
    if tensors[0].numel() <= size:
        return (tensors,)
    return zip(*(torch.split(tensor.reshape(-1), size) for tensor in tensors), strict=True)


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
