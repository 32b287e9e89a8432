"""The voting tensors of a model in the precision that they are matched in, made when they are asked for.

Of a model that is mapped from a file only what is being looked at need be in memory, so nothing is copied ahead.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedrebasin.errors import MatchingError
from fedrebasin.memory import LARGE

# Conversions up to this many bytes in all are kept; a checkpoint in half precision that is larger is converted anew
# each time, so that it does not need twice its size.
_KEPT_BYTES = 2**28
# Norms, as powers of two. Between these float32 products of the weights neither overflow nor vanish.
_LEAST, _MOST = -30, 40
# A tensor this much smaller than the largest is matched in float64, where its products are still numbers.
_RANGE = 40
# Entries that are added up in their own precision, and squares.
_STRETCH = 4096
_SQUARES = 512
# Norms whose squares, and those of all entries that matter, are float32 numbers.
_PLAIN = 1e-12, 1e15


class Totals(NamedTuple):
    """What one reading of a tensor says of it, whatever the order of its entries."""

    entries: int
    sum: float
    norm: float


class Prepared(Mapping[str, Tensor]):
    """Tensors of a state dict, contiguous, real, at least float32, on one device, at a scale where products fit.

    Complex tensors become real ones with one more dimension, of two. All tensors are multiplied by one power of two
    where the model's weights are very large or very small: which permutation is best does not depend on that.

    Args:
        state: the state dict; not changed.
        keys: those that vote.
        role: the model's name in errors.
        like: tensors whose dtypes and devices these take; their own where None.

    Attributes:
        totals: by key, of the tensors as they are given.
        exponent: the tensors are multiplied by two to this power.

    Raises:
        MatchingError: if a value is not finite, or a tensor has no values.
    """

    def __init__(
        self, state: Mapping[str, Tensor], keys: Sequence[str], role: str, like: Mapping[str, Tensor] | None = None
    ) -> None:
        self._state, self._like = state, like
        self._keys = dict.fromkeys(keys)
        self._kept: dict[str, Tensor] = {}
        self._room = _KEPT_BYTES
        self._double = False
        self.totals = {key: totals(key, state[key], role) for key in keys}
        self.exponent = 0
        sizes = [math.frexp(found.norm)[1] for found in self.totals.values() if found.norm > 0]
        self.ranges_widely = bool(sizes) and max(sizes) - min(sizes) > _RANGE
        if sizes and not _LEAST <= max(sizes) <= _MOST:
            self.exponent = -max(sizes)

    def widen(self) -> None:
        """Give out float64 from now on."""
        self._double = True

    @property
    def norm(self) -> float:
        """Of all tensors together, as they are given out."""
        return math.hypot(*(scaled(found.norm, self.exponent) for found in self.totals.values()))

    def __getitem__(self, key: str) -> Tensor:
        """The tensor as it is matched."""
        if key in self._kept:
            return self._kept[key]
        if key not in self._keys:
            raise KeyError(key)
        tensor = self._state[key].detach()
        given = as_real(tensor)
        wide = given.double() if self._double else given
        if self._like is not None:
            wide = wide.to(self._like[key].device, self._like[key].dtype)
        wide = wide.contiguous()
        if self.exponent:
            wide = (wide.double() * 2.0**self.exponent).to(wide.dtype)
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


def as_real(tensor: Tensor) -> Tensor:
    """The same numbers in a real dtype of at least 32 bits; the parts of complex ones in a further, last dimension."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.element_size() < 4 else tensor


def scaled(value: float, exponent: int) -> float:
    """``value`` times two to a power; the largest number where that is too large."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(sys.float_info.max, value)


def totals(key: str, tensor: Tensor, role: str) -> Totals:
    """Read a tensor once.

    Raises:
        MatchingError: if a value is not finite, with the number of such values; if there are no values to be read.
    """
    if tensor.is_meta:
        raise MatchingError(f"{role}: {key} lies on the meta device, without values: load them first")
    try:
        parts = [_totals(as_real(part)) for part in torch.split(tensor.detach().flatten(), LARGE)]
        if not all(math.isfinite(part.sum) for part in parts):
            real = as_real(tensor.detach())
            bad = int((~real.isfinite()).sum())
            raise MatchingError(f"{role}: {key} has {bad} values that are not finite: leave this model out")
        norm = min(math.hypot(*(part.norm for part in parts)), sys.float_info.max)
        return Totals(sum(part.entries for part in parts), sum(part.sum for part in parts), norm)
    except (RuntimeError, TypeError) as error:
        kind = f"{tensor.dtype} of layout {tensor.layout}".replace("torch.", "")
        raise MatchingError(f"{role}: {key} ({kind}) cannot be matched: {str(error).splitlines()[0]}") from None


def _totals(tensor: Tensor) -> Totals:
    total = float(tensor.sum())
    if not math.isfinite(total) and bool(tensor.isfinite().all()):
        total = max(-sys.float_info.max, min(sys.float_info.max, float(tensor.sum(dtype=torch.float64))))
    return Totals(tensor.numel(), total, _norm(tensor.flatten()) if math.isfinite(total) else 0.0)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of vectors, stretches in their own precision and those in float64: to some 1e-8 of its size."""
    whole = a.numel() // _STRETCH * _STRETCH
    if a.dtype == torch.float64 or not whole:
        return float(a.double() @ b.double())
    stretches = (a[:whole] * b[:whole]).view(-1, _STRETCH).sum(1)
    return float(stretches.sum(dtype=torch.float64)) + float(a[whole:].double() @ b[whole:].double())


def _norm(vector: Tensor) -> float:
    norm = _plain_norm(vector)
    if _PLAIN[0] < norm < _PLAIN[1] or not vector.numel():
        return norm
    largest = float(vector.abs().max())  # squares may overflow and vanish
    return largest * float(torch.linalg.vector_norm(vector.double() / largest)) if largest else 0.0


def _plain_norm(vector: Tensor) -> float:
    """As of :func:`dot`, and as exact, but no products are written down."""
    whole = vector.numel() // _SQUARES * _SQUARES
    if vector.dtype == torch.float64 or vector.numel() < _STRETCH:
        return float(torch.linalg.vector_norm(vector.double()))
    stretches = torch.linalg.vector_norm(vector[:whole].view(-1, _SQUARES), dim=1)
    return math.hypot(float(torch.linalg.vector_norm(stretches.double())), float(vector[whole:].double().norm()))
