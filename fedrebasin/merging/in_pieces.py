"""The mean of aligned models a few rows at a time: neither they nor their sum need be in memory whole."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.merging.average import normalised
from fedrebasin.spec import Permutation
from fedrebasin.state import Mean, State, demand_equal, dtype_name, has_mean, is_counter, naming, wide

# Entries of a piece: a few megabytes each, which allocators give back, for tensors of any size.
_PIECE = 2**20


def permuted_rows(permutation: Permutation | None, key: str, tensor: Tensor, rows: int) -> Iterator[Tensor]:
    """``permutation.apply(state)[key]``, so many rows at a time.

    Args:
        permutation: None for the identity.
        key: of the tensor in the state dict.
        tensor: with at least one dimension.
        rows: entries of the first dimension in a piece.
    """
    moves = [] if permutation is None else [(axis, index) for axis, index in permutation.moves() if axis.key == key]
    places: dict[int, Tensor] = {}
    if all(axis.lies_on_one_dimension for axis, _ in moves):
        for axis, index in moves:
            axis.alone().move(places.setdefault(axis.dim, torch.arange(tensor.shape[axis.dim])), index)
    else:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        for axis, index in moves:
            axis.move(tensor, index)
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        if 0 in places:
            part = tensor.index_select(0, places[0][start : start + rows].to(tensor.device))
        for dim in places.keys() - {0}:
            part = part.index_select(dim, places[dim].to(tensor.device))
        yield part


def permuted(permutation: Permutation, key: str, tensor: Tensor) -> Tensor:
    """``permutation.apply(state)[key]``, of one tensor."""
    if not (tensor.dim() and tensor.numel()):
        return tensor
    return next(permuted_rows(permutation, key, tensor, len(tensor)))


@dataclass(frozen=True)
class MeanInPieces:
    """The weighted mean of permuted models, tensor by tensor and row by row.

    Identity: without a base, the pieces of every key together are :func:`fedrebasin.merging.average` of
    ``permutation.apply(state)``, bit for bit.

    Args:
        states: state dicts with the same floating-point tensors.
        permutations: one for each; None leaves a model as it is.
        weights: one for each, equal if None. Without a base only their proportions count.
        base: another model: the result is ``base + sum of w_k (state_k - base)`` with the weights as they are, as in
            task arithmetic (Ilharco et al., ICLR 2023).
        dtype: of the floating-point tensors of the result, which are rounded once; None for the first model's own.

    Raises:
        MergeError: if the weights cannot be used.
    """

    states: Sequence[State]
    permutations: Sequence[Permutation | None]
    weights: Sequence[float] | None = None
    base: State | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.base is None:
            normalised(self.weights, len(self.states))
        elif self.weights is not None and len(self.weights) != len(self.states):
            raise MergeError(f"{len(self.weights)} weights for {len(self.states)} models: give one for each")
        elif self.weights is not None and not all(map(math.isfinite, self.weights)):
            raise MergeError(f"the weights {tuple(self.weights)} must be finite")

    def __call__(self, key: str) -> Iterator[Tensor]:
        """The tensor of a key in pieces along its first dimension; counters are the first model's, or the base's.

        Raises:
            MergeError: if it is made of integers that differ between the models, or of what cannot be averaged, or
                is too large for the dtype.
        """
        like = (self.states[0] if self.base is None else self.base)[key]
        with naming(key):
            if is_counter(like):
                yield like
            elif has_mean(like):
                for part in self._averaged(key, like):
                    yield rounded(key, part, self.dtype)
            else:
                yield self._agreed(key, like)

    def _agreed(self, key: str, like: Tensor) -> Tensor:
        """An integer tensor of one dimension and more, which has to be the same in all models once it has moved."""
        whole = (
            next(permuted_rows(permutation, key, state[key], len(like)), like)
            for permutation, state in zip(self.permutations, self.states, strict=True)
        )
        agreed = like if self.base is not None else next(whole)
        for number, tensor in enumerate(whole, 1 if self.base is not None else 2):
            demand_equal(key, agreed, tensor, number)
        return agreed

    def _averaged(self, key: str, like: Tensor) -> Iterator[Tensor]:
        tensors = [state[key].detach().reshape(like.shape or (1,)) for state in self.states]
        rows = max(1, _PIECE * len(tensors[0]) // max(1, tensors[0].numel()))
        parts = zip(
            *(
                permuted_rows(permutation, key, tensor, rows)
                for permutation, tensor in zip(self.permutations, tensors, strict=True)
            ),
            strict=True,
        )
        if self.base is None:
            weights = self.weights or (1.0,) * len(self.states)
            for pieces in parts:
                mean = Mean()
                for piece, weight in zip(pieces, weights, strict=True):
                    mean.add({key: piece if self.dtype is None else wide(piece)}, weight)
                yield mean.finish()[key].reshape(-1)
        else:
            weights = self.weights or (1 / len(self.states),) * len(self.states)
            for base, pieces in zip(torch.split(like.detach().reshape(like.shape or (1,)), rows), parts, strict=True):
                start = wide(base)
                steps = (weight * (wide(piece) - start) for weight, piece in zip(weights, pieces, strict=True))
                total = (start + sum(steps)).reshape(-1)
                yield total if self.dtype is not None else total.to(like.dtype)


def rounded(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in another dtype; any other, and without a dtype all, as they are.

    Raises:
        MergeError: if a number is too large for it.
    """
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    found = tensor.to(dtype)
    if bool(found.isinf().any()) and not bool(tensor.isinf().any()):
        raise MergeError(f"{key}: its largest number is too large for {dtype_name(dtype)}")
    return found
