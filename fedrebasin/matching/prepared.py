"""The voting tensors of a model in the precision that they are matched in, made when they are asked for.

Of a model that is mapped from a file only what is being looked at need be in memory, so nothing is copied ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedrebasin.errors import MatchingError

# Conversions up to this many bytes in all are kept; a checkpoint in half precision that is larger is converted anew
# each time, so that it does not need twice its size.
_KEPT_BYTES = 2**28


class Prepared(Mapping[str, Tensor]):
    """Tensors of a state dict, contiguous, at least float32, on one device.

    Args:
        state: the state dict; not changed.
        keys: those that vote.
        role: the model's name in errors.
        like: tensors whose dtypes and devices these take; their own where None.

    Raises:
        MatchingError: if a value is not finite.
    """

    def __init__(
        self, state: Mapping[str, Tensor], keys: Sequence[str], role: str, like: Mapping[str, Tensor] | None = None
    ) -> None:
        self._state, self._like = state, like
        self._keys = dict.fromkeys(keys)
        self._kept: dict[str, Tensor] = {}
        self._room = _KEPT_BYTES
        for key in keys:
            demand_finite(key, state[key], role)

    def __getitem__(self, key: str) -> Tensor:
        """The tensor as it is matched."""
        if key in self._kept:
            return self._kept[key]
        if key not in self._keys:
            raise KeyError(key)
        tensor = self._state[key].detach()
        wide = tensor.float() if tensor.element_size() < 4 else tensor
        if self._like is not None:
            wide = wide.to(self._like[key].device, self._like[key].dtype)
        wide = wide.contiguous()
        if wide.device == tensor.device and wide.data_ptr() == tensor.data_ptr():
            keep = isinstance(self._state, dict)  # what a mapped file gives out, it wants to let go of again
        else:
            keep = wide.device != tensor.device or wide.nbytes <= self._room
            self._room -= wide.nbytes if keep and wide.device == tensor.device else 0
        if keep:
            self._kept[key] = wide
        return wide

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def demand_finite(key: str, tensor: Tensor, role: str) -> None:
    """Refuse a tensor with NaN or infinity.

    Raises:
        MatchingError: with the number of such values.
    """
    if not bool(tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else None).isfinite()) and not bool(
        tensor.isfinite().all()
    ):
        bad = int((~tensor.isfinite()).sum())
        raise MatchingError(f"{role}: {key} has {bad} values that are not finite: leave this model out")
