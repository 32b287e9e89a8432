"""Means and deviations over a data set from sums, and the per-example vector measures that are summed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_batches, mode_of, number_of_examples
from fedrebasin.sums import add_sums


class Spread(NamedTuple):
    """Mean and (population) standard deviation over the examples."""

    mean: float
    std: float


def spread_sums(values: Tensor) -> Tensor:
    """What a batch adds to a :class:`Spread`: how many values, their sum and the sum of their squares, shape ``(3,)``.

    Args:
        values: float64, one for each example, shape ``(n,)``.
    """
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def spread_of(sums: Sequence[float]) -> Spread:
    """Mean and standard deviation from the sums of :func:`spread_sums`."""
    count, total, squares = sums
    mean = total / count
    return Spread(mean, max(0.0, squares / count - mean * mean) ** 0.5)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """The cosine of each row of ``x`` with that of ``y``, shape ``(n,)``; two zero rows agree (1), one gives 0."""
    product, lengths = (x * y).sum(1), x.norm(dim=1) * y.norm(dim=1)
    both_zero = (x.norm(dim=1) == 0) & (y.norm(dim=1) == 0)
    found = torch.where(lengths > 0, product / lengths.clamp_min(1e-300), torch.zeros_like(product))
    return torch.where(both_zero, torch.ones_like(found), found).clamp(-1, 1)


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; 0 / 0 is 0."""
    if denominator == 0:
        return 0.0 if numerator == 0 else float("inf")
    return numerator / denominator


def normalised_distance(difference: float, x: float, y: float) -> float:
    """``|x - y|^2 / (|x| |y|)`` from the three squared norms (LLFC, section 4.2); 0 where both are zero."""
    return ratio(difference, (x * y) ** 0.5)


def sums_over(
    model: nn.Module, batches: Iterable[Batch], of_batch: Callable[[Batch], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What the batches add up to, by name, with the model in evaluation mode.

    Raises:
        CalibrationError: if there is no data.
    """
    total: dict[str, Tensor] = {}
    with mode_of(model):
        for batch in each_batch(batches):
            total = add_sums(total, of_batch(batch))
    return total


def each_batch(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches that are not empty.

    Raises:
        CalibrationError: if there is none.
    """
    seen = False
    for batch in demand_batches(batches):
        if number_of_examples(batch):
            seen = True
            yield batch
    if not seen:
        raise CalibrationError("there are no batches to measure on")
