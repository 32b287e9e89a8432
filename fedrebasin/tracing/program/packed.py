"""Packed sequences, read as padded ones: they have the same symmetries, and torch.export cannot read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import _VF, Tensor

_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class _FullBatches(list[int]):
    """How many sequences each step has, where all are of full length: plain numbers, so that no size hangs on data."""

    device = torch.device("cpu")

    def size(self, _dim: int) -> int:
        """The number of steps, as a tensor of batch sizes says it."""
        return len(self)


def _pack(x: Tensor, lengths: Any, batch_first: bool) -> tuple[Tensor, Any]:
    steps = x.transpose(0, 1) if batch_first else x
    return steps.flatten(0, 1), _FullBatches([steps.shape[1]] * steps.shape[0])


def _unpack(data: Tensor, batches: Any, batch_first: bool, padding: float, length: int) -> tuple[Tensor, Tensor]:
    steps = data.view(len(batches), batches[0], *data.shape[1:])
    lengths = torch.full((batches[0],), len(batches), dtype=torch.int64)
    return (steps.transpose(0, 1) if batch_first else steps), lengths


def _layer(plain: Any) -> Any:
    def run(x: Tensor, *args: Any) -> Any:
        if not isinstance(args[0], _FullBatches):
            return plain(x, *args)
        batches, state, weights, *options = args
        out, *states = plain(x.view(len(batches), batches[0], -1), state, weights, *options, False)
        return (out.flatten(0, 1), *states)

    return run


@contextmanager
def packed_as_padded() -> Iterator[None]:
    """While it lasts, packing keeps all steps, and recurrent layers read what was packed as a padded batch."""
    replaced = {"_pack_padded_sequence": _pack, "_pad_packed_sequence": _unpack}
    replaced |= {name: _layer(getattr(_VF, name)) for name in _LAYERS}
    for name, function in replaced.items():
        setattr(_VF, name, function)
    try:
        yield
    finally:
        for name in replaced:
            delattr(_VF, name)
