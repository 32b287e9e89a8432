"""What a linear map of a running model reads and gives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FEATURE_ENTRIES = 1 << 23  # of the unfolded inputs of a convolution that are in memory at a time: 64 MB in float64


@dataclass(frozen=True)
class Product:
    """One use of a weight in a linear map: a product from either side, a convolution or its transpose, an embedding.

    Args:
        weight: key of the weight.
        start: the first of the weight's output units that takes part.
        rows: how many do.
        total: output units of the whole weight.
        groups: of a grouped convolution, else 1.
        inputs: shape ``(..., units)``, or ``(batch, units, *space)`` for a convolution; an embedding reads integers.
        output: the same with output units.
        is_convolution: whether units are on dimension 1, and the weight has a kernel.
        inputs_first: whether dimension 0 of the weight are the inputs (of all groups), and dimension 1 the outputs.
        has_bias: whether the output holds the bias; some operators add it later on.
        is_affine: whether :meth:`features` times rows of the weight give the output, and the weight has one name.
        window: kernel size, stride, padding and dilation of a convolution that is affine.
    """

    weight: str
    start: int
    rows: int
    total: int
    groups: int
    inputs: Tensor
    output: Tensor
    is_convolution: bool = False
    inputs_first: bool = False
    has_bias: bool = False
    is_affine: bool = False
    window: tuple[list[int], list[int], list[int], list[int]] | None = None

    @property
    def reads_units(self) -> bool:
        """Whether the inputs are units, and not the numbers of an embedding's rows."""
        return self.inputs.is_floating_point() or self.inputs.is_complex()

    def units_last(self, values: Tensor) -> Tensor:
        """The inputs or the output as ``(..., units)``."""
        return values.movedim(1, -1) if self.is_convolution else values

    def by_group(self, like: Tensor) -> Tensor:
        """The part that is used of a tensor with the shape of the weight: ``(groups, outputs, inputs, *kernel)``."""
        parts = torch.unflatten(like, 0, (self.groups, -1))
        return (parts.transpose(1, 2) if self.inputs_first else parts)[:, self.start : self.start + self.rows]

    @property
    def blocks(self) -> range:
        """Which of the weight's blocks of rows take part; the rows of one block read the same features."""
        if self.groups > 1:
            return range(self.groups)
        size = math.gcd(self.start, self.rows, self.total)
        return range(self.start // size, (self.start + self.rows) // size)

    @property
    def number_of_blocks(self) -> int:
        """Into how many blocks of rows the whole weight falls."""
        return self.groups if self.groups > 1 else self.total // math.gcd(self.start, self.rows, self.total)

    @property
    def outputs(self) -> Tensor:
        """The output with units last: shape ``(n, rows)``."""
        return self.units_last(self.output).flatten(0, -2)

    def like_output(self, rows: Tensor) -> Tensor:
        """Values of shape ``(n, rows)`` in the shape of the output."""
        if self.window is None:
            return rows.reshape(self.output.shape)
        return rows.reshape(len(self.output), *self.output.shape[2:], self.rows).movedim(-1, 1)

    def features(self) -> Iterator[Tensor]:
        """The features with a 1 appended, in chunks of float64: shape ``(groups, n, features + 1)``.

        A convolution's inputs are unfolded: feature ``(c, *k)`` of a position is what the weight's entry
        ``[row, c, *k]`` meets there.
        """
        if self.window is None:
            rows = self.inputs.reshape(1, -1, self.inputs.shape[-1]).double()
            yield torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
            return
        kernel, stride, padding, dilation = self.window
        positions = math.prod(self.output.shape[2:])
        per_example = positions * self.inputs.shape[1] * math.prod(kernel)
        for part in torch.split(self.inputs, max(1, _FEATURE_ENTRIES // max(1, per_example))):
            padded = nn.functional.pad(part, [amount for size in reversed(padding) for amount in (size, size)])
            for dim, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
                padded = padded.unfold(dim + 2, (size - 1) * gap + 1, step)[..., ::gap]
            space = range(3, 3 + len(kernel))
            grouped = padded.reshape(padded.shape[0], self.groups, -1, *padded.shape[2:])
            patches = grouped.permute(1, 0, *space, 2, *(dim + len(kernel) for dim in space))
            rows = patches.reshape(self.groups, part.shape[0] * positions, -1).double()
            yield torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
