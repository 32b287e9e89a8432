"""The weighted mean of models."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from fedrebasin.errors import MergeError, RebasinError, one_line
from fedrebasin.memory import pieces, room
from fedrebasin.state.kinds import (
    State,
    computable,
    demand_numbers,
    demand_same_form,
    dtype_name,
    has_mean,
    is_counter,
    wide,
)

#: What becomes of integer and bool tensors, which have no mean.
Integers = Literal["equal", "averaged"]

# Binary digits that a weighted number stays below the largest float64: 1024 of them can be added up.
_SPARE = 10


class Mean:
    """The weighted mean of models that come one by one: their sum and one model are in memory, however many they are.

    Floats and complex numbers are added up in float64 and complex128, where the first model lies, and their mean has
    the first model's dtypes, whatever the others have: the order of the models moves it by float64's rounding only.
    Weights may be of any size; only their proportions count.

    Integers and bools are one of two things. ``"equal"``, as in all merging: single ones are counters and switches, and
    the first model's; those of more entries (masks, integer weights, indices) have to be equal in all models.
    ``"averaged"``, as Flower does it: they are float64 numbers like any other, and so is their mean.

    Args:
        integers: which of these.
        total: the sum of all weights, where it is known. Each model is multiplied by its share of it and added up in
            its own precision then; identity: bit for bit what Flower's strategies make of float32 and float64.
    """

    def __init__(self, integers: Integers = "equal", total: float | None = None) -> None:
        self._integers, self._total = integers, total
        self._count = 0
        self._weights: list[float] = []
        self._exponent = -1100  # of the largest weight so far: below that of any number
        self._like: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, state: State, weight: float = 1.0) -> None:
        """Add a model.

        Args:
            state: of the same keys and shapes as those before; it is not kept, but for its integers.
            weight: not negative.

        Raises:
            MergeError: if keys or shapes differ, or integers that have to be equal, or the weight cannot be used: the
                mean stays as it was; if a dtype has no sums.
        """
        if not 0 <= weight < math.inf:
            raise MergeError(f"the weight {weight} must be finite and not negative")
        self._demand_alike(state)
        self._count += 1
        share = self._share(weight)
        for key, tensor in state.items():
            if self._is_averaged(key):
                with naming(key):
                    self._add(key, tensor.detach(), share)

    def finish(self) -> dict[str, Tensor]:
        """The mean of the models so far: a new state dict.

        Raises:
            MergeError: if there is no model, or all weights are zero.
        """
        if not self._count:
            raise MergeError("no model to average: give at least one state dict")
        if self._total is not None:
            return dict(self._sums)
        total = math.fsum(self._weights)
        if total == 0:
            raise MergeError("the weights are all zero: the models have no mean")
        mean = {}
        for key, like in self._like.items():
            with naming(key):
                mean[key] = self._divided(key, total) if key in self._sums else like.detach().clone()
        return mean

    def _demand_alike(self, state: State) -> None:
        demand_numbers(state)
        if not self._count:
            self._like = {key: torch.empty_like(t, device="meta") if has_mean(t) else t for key, t in state.items()}
        demand_same_form(self._like, state)
        for key, like in self._like.items():
            if not self._is_averaged(key):
                with naming(key):
                    demand_equal(key, like, state[key], self._count + 1)

    def _is_averaged(self, key: str) -> bool:
        return self._integers == "averaged" or has_mean(self._like[key])

    def _share(self, weight: float) -> float:
        """The weight by a power of two that is the same for all, so that sums of weighted numbers cannot overflow."""
        if self._total is not None:
            return weight / self._total
        _, exponent = math.frexp(weight)
        if weight > 0 and exponent > self._exponent:
            less = math.ldexp(1.0, self._exponent - exponent)
            self._weights = [before * less for before in self._weights]
            for total in self._sums.values():
                total.mul_(less)
            self._exponent = exponent
        self._weights.append(math.ldexp(weight, -self._exponent - _SPARE))
        return self._weights[-1]

    def _add(self, key: str, tensor: Tensor, share: float) -> None:
        own = self._total is not None and has_mean(tensor)
        is_first = key not in self._sums
        if is_first:
            dtype = torch.complex128 if tensor.is_complex() else torch.float64
            self._sums[key] = room(tensor.shape, tensor.dtype if own else dtype, tensor.device)
        for total, part in pieces(self._sums[key], tensor):
            term = part.to(total.device)
            if is_first:
                torch.mul(term if own else wide(term), share, out=total)
            elif self._total is None:
                total.add_(computable(term), alpha=share)  # in the precision of the total
            else:
                total.add_((term if own else wide(term)) * share)

    def _divided(self, key: str, total: float) -> Tensor:
        sums, like = self._sums[key], self._like[key]
        mean = room(sums.shape, like.dtype if has_mean(like) else sums.dtype, sums.device)
        for part, its_sum in pieces(mean, sums):
            part.copy_(its_sum / total)
        return mean


def demand_equal(key: str, first: Tensor, other: Tensor, number: int) -> None:
    """Refuse integer and bool tensors that differ from the first model's; counters may.

    Args:
        key: of the tensor.
        first: in the first model, or the base.
        other: in another one, its units in the same order.
        number: of that model, from 1, for the message.

    Raises:
        MergeError: with the key and the number of entries that differ.
    """
    if first is other or is_counter(first):
        return
    if different := _number_different(first, other):
        kind = dtype_name(first.dtype)
        raise MergeError(
            f"{key}: {different} of {first.numel()} entries of model {number} are not the first model's, and {kind} "
            "tensors are not averaged: make them equal in all models, or merge only those that have the same"
        )


def _number_different(a: Tensor, b: Tensor) -> int:
    """Entries in which two tensors of one shape differ, of whatever dtype."""
    common = torch.promote_types(a.dtype, b.dtype)
    bits = [t.detach().to(a.device, common).contiguous().reshape(-1, 1).view(torch.uint8) for t in (a, b)]
    return int((bits[0] != bits[1]).any(1).sum())


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Whatever torch cannot do with a tensor (4-bit floats, quantised ones) becomes an error that names it.

    Raises:
        MergeError: with the key and torch's reason.
    """
    try:
        yield
    except RebasinError:
        raise
    except Exception as error:
        raise MergeError(f"{key} cannot be averaged: {one_line(error)}") from error
