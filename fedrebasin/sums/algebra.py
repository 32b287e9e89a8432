"""The algebra of sums: what a client sends for a statistic, and how it adds up.

A statistic is a function of the *sums* of what each batch contributes. Sums are flat dicts of tensors; the empty dict
is zero. Laws: ``add_sums`` is commutative and associative with ``{}`` as its neutral element, and up to rounding the
sums over all data are those over a part of the data plus those over the rest, however the examples are batched or split
over clients, unless a statistic's docstring says otherwise.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, demand_batches, mode_of, number_of_examples, without_single_examples
from fedrebasin.state import State

Result = TypeVar("Result", covariant=True)
Sums = Mapping[str, Tensor]

#: In every payload: the number of examples behind it, float64, shape ().
EXAMPLES = "examples"
#: More places than a batch could hold: positions of an image or a sequence, labels of one example.
ROWS_PER_EXAMPLE = 10**6


class Statistic(Protocol[Result]):
    """What is summed over the data, and what the sums mean.

    One may also have ``sizes(sums) -> dict[str, float]``: by what else than the number of examples its sums outweigh
    others', all of which grow with the data, see :func:`sizes_of`.

    Attributes:
        name: a Python identifier; the name of the federated query.
        batch_statistics: whether BatchNorm modules normalise with each batch's own moments while sums are taken.
    """

    @property
    def name(self) -> str:
        """A Python identifier."""
        ...

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm modules normalise with each batch's own moments."""
        ...

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """What one batch contributes, in float64."""
        ...

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have.

        Raises:
            CalibrationError: naming the entry and what is wrong with it.
        """
        ...

    def finish(self, sums: Sums) -> Result:
        """The statistic.

        Raises:
            CalibrationError: if the sums are those of no data at all.
        """
        ...


def add_sums(left: Sums, right: Sums) -> dict[str, Tensor]:
    """The sum of two payloads; an entry that one side lacks counts as zero.

    Raises:
        CalibrationError: if an entry has two shapes.
    """
    total = dict(left)
    for key, tensor in right.items():
        if key not in total:
            total[key] = tensor
            continue
        if total[key].shape != tensor.shape:
            raise CalibrationError(f"{key}: shape {tuple(tensor.shape)} cannot be added to {tuple(total[key].shape)}")
        total[key] = total[key] + tensor.to(total[key].device)
    return total


def collect_sums(
    statistic: Statistic[object],
    model: nn.Module,
    state: State,
    batches: Iterable[Batch],
    min_examples: int = 0,
    max_examples: int | None = None,
) -> dict[str, Tensor]:
    """The sums over all batches, streamed: one batch's contribution lives at a time.

    Args:
        statistic: what to sum.
        model: the module; its own parameters are not read, its mode is restored.
        state: the tensors to run it with.
        batches: any iterable of batches; empty ones are skipped. Where BatchNorm normalises with the batch at hand, a
            batch of a single example, as the last one may be, joins its neighbour.
        min_examples: refuse to return sums over fewer examples than this, which could give one of them away.
        max_examples: read no further batch once there are as many; None reads them all.

    Returns:
        ``{}`` without data, else the sums and ``examples``.

    Raises:
        CalibrationError: if there are fewer than ``min_examples`` examples, or the model cannot be run on them.
    """
    total: dict[str, Tensor] = {}
    examples = 0

    def read() -> Iterator[Batch]:
        nonlocal examples
        for batch in demand_batches(batches):
            if max_examples is not None and examples >= max_examples:
                return
            if count := number_of_examples(batch):
                examples += count
                yield batch

    with mode_of(model, statistic.batch_statistics):
        for batch in without_single_examples(read()) if statistic.batch_statistics else read():
            for key, tensor in statistic.from_batch(model, state, batch).items():
                if key in total:
                    total[key] += tensor
                else:
                    total[key] = tensor
    if examples < min_examples:
        raise CalibrationError(f"{statistic.name}: {examples} examples are fewer than the {min_examples} demanded")
    if total:
        total[EXAMPLES] = torch.tensor(float(examples), dtype=torch.float64)
    return total


def demand(sums: Sums, shapes: Mapping[str, tuple[int, ...] | None], name: str) -> None:
    """Refuse a payload with missing, misshapen or non-finite entries, or without examples.

    Args:
        sums: the payload.
        shapes: every entry that must be there, with its shape where it is known.
        name: the statistic's name, for the message.

    Raises:
        CalibrationError: naming the entry.
    """
    for key, shape in {EXAMPLES: (), **shapes}.items():
        if key not in sums:
            raise CalibrationError(f"{name}: {key} is missing")
        if shape is not None and tuple(sums[key].shape) != shape:
            raise CalibrationError(f"{name}: {key} has shape {tuple(sums[key].shape)} instead of {shape}")
    for key, tensor in sums.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(f"{name}: {key} has values that are not finite")
    if float(sums[EXAMPLES]) < 1:
        raise CalibrationError(f"{name}: {float(sums[EXAMPLES]):g} examples")


def demand_rows(sums: Sums, rows: Tensor, where: str) -> None:
    """Refuse a number of values that the examples cannot have given.

    Args:
        sums: with ``examples``.
        rows: numbers of values, any shape.
        where: begins the message.

    Raises:
        CalibrationError: if one is negative or beyond :data:`ROWS_PER_EXAMPLE` for each example.
    """
    if bool((rows < 0).any() or (rows > float(sums[EXAMPLES]) * ROWS_PER_EXAMPLE).any()):
        raise CalibrationError(
            f"{where}: {float(rows.abs().max()):g} values cannot come of {float(sums[EXAMPLES]):g} examples"
        )


def sizes_of(statistic: Statistic[object], sums: Sums) -> dict[str, float]:
    """What sums outweigh others by: the number of examples, and what the statistic itself names.

    Law: a multiple of the sums has that multiple of each size.

    Args:
        statistic: of the sums.
        sums: valid for it.
    """
    own = getattr(statistic, "sizes", None)
    return {EXAMPLES: float(sums[EXAMPLES]), **({} if own is None else own(sums))}


def scaled(sums: Sums, factor: float) -> dict[str, Tensor]:
    """The sums of as many more or fewer examples like these."""
    return {key: tensor * factor for key, tensor in sums.items()}


def demand_data(sums: Sums, name: str) -> None:
    """Refuse the sums of no data.

    Raises:
        CalibrationError: if ``sums`` is empty.
    """
    if EXAMPLES not in sums:
        raise CalibrationError(f"{name}: there are no examples; no client sent sums, or all batches were empty")
