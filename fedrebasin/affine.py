"""Every product of data with a weight while a model runs: linear layers, convolutions, attention projections.

The operators are watched, not the modules: a weight is recognised by its memory wherever it is multiplied, so that
``F.linear`` on a bare parameter, a packed query/key/value projection and the output projection of
``nn.MultiheadAttention`` count like any ``nn.Linear``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch, State, demand_parameters, forward, mode_of

_aten = torch.ops.aten
_FEATURE_ENTRIES = 1 << 23  # of the unfolded inputs of a convolution that are in memory at a time: 64 MB in float64


def bias_of(weight: str, state: State) -> str | None:
    """The key of the bias that is added to the product with a weight, by name; None if there is none."""
    if not weight.endswith("weight"):
        return None
    key = f"{weight.removesuffix('weight')}bias"
    return key if key in state and tuple(state[key].shape) == tuple(state[weight].shape[:1]) else None


def affine_matrix(state: State, weight: str, blocks: int = 1) -> Tensor:
    """A weight as a matrix, its bias, if it has one, as the last column: what multiplies features with a 1 appended.

    Args:
        state: the state dict.
        weight: key of the weight.
        blocks: into how many blocks its rows fall.

    Returns:
        float64, shape ``(blocks, rows / blocks, features + 1)``, or ``(blocks, rows / blocks, features)``.
    """
    matrix = state[weight].detach().flatten(1).double()
    if (key := bias_of(weight, state)) is not None:
        matrix = torch.cat([matrix, state[key].detach().double()[:, None]], 1)
    return matrix.reshape(blocks, len(matrix) // blocks, -1)


def with_affine_matrix(state: State, weight: str, matrix: Tensor) -> dict[str, Tensor]:
    """The entries of a state dict that such a matrix replaces, in their dtype and on their device."""
    rows = matrix.reshape(len(state[weight]), -1)
    key = bias_of(weight, state)
    if key is None:
        return {weight: rows.reshape(state[weight].shape).to(state[weight])}
    return {weight: rows[:, :-1].reshape(state[weight].shape).to(state[weight]), key: rows[:, -1].to(state[key])}


@dataclass(frozen=True)
class AffineCall:
    """One product of data with rows of a weight.

    Args:
        weight: key of the weight; its dimension 0 are the output units.
        start: the first row that takes part.
        rows: how many do.
        total: rows of the whole weight.
        groups: of a grouped convolution, else 1.
        inputs: shape ``(n, features)``, or ``(batch, channels, *space)`` for a convolution.
        output: shape ``(n, rows)``, or ``(batch, rows, *space)``.
        has_bias: whether the output holds the bias; some operators add it later on.
        window: kernel size, stride, padding and dilation of a convolution.
    """

    weight: str
    start: int
    rows: int
    total: int
    groups: int
    inputs: Tensor
    output: Tensor
    has_bias: bool
    window: tuple[list[int], list[int], list[int], list[int]] | None = None

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
        return self.output if self.window is None else self.output.movedim(1, -1).flatten(0, -2)

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


@dataclass(frozen=True)
class _Place:
    key: str
    tensor: Tensor


class _AffineWatch(TorchDispatchMode):
    """Calls ``on_call`` for each product with a weight; what it returns, if anything, replaces the output."""

    def __init__(
        self,
        weights: State,
        on_call: Callable[[AffineCall], Tensor | None],
        on_batch_norm: Callable[[Tensor], None] | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: dict[int, list[_Place]] = {}
        for key, tensor in weights.items():
            self._places.setdefault(tensor.untyped_storage().data_ptr(), []).append(_Place(key, tensor))
        self._on_call = on_call
        self._on_batch_norm = on_batch_norm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        call: AffineCall | None = None
        if func is _aten.addmm.default and not kwargs:
            call = self._product(args[1], args[2], output, True)
        elif func is _aten.mm.default:
            call = self._product(args[0], args[1], output, False)
        elif func is _aten.bmm.default and (
            args[1].stride(0) == 0 or len(args[1]) == 1
        ):  # one matrix for the whole batch
            call = self._product(args[0].flatten(0, 1), args[1][0], output, False)
        elif func is _aten.linear.default:
            call = self._product(args[0], args[1].t(), output, len(args) > 2 and args[2] is not None)
        elif func is _aten.convolution.default:
            call = self._convolution(args, output)
        elif self._on_batch_norm is not None and "batch_norm" in func.name():
            self._on_batch_norm(args[0])
        if call is None:
            return output
        replaced = self._on_call(call)
        return output if replaced is None else replaced.reshape(output.shape)

    def _find(self, tensor: Tensor) -> _Place | None:
        for place in self._places.get(tensor.untyped_storage().data_ptr(), ()):
            first = place.tensor.storage_offset()
            if first <= tensor.storage_offset() < first + max(place.tensor.numel(), 1):
                return place
        return None

    def _product(self, data: Tensor, columns: Tensor, output: Tensor, has_bias: bool) -> AffineCall | None:
        """A product with whole rows of a weight of two dimensions, given transposed."""
        place = self._find(columns)
        if place is None or place.tensor.dim() != 2 or columns.shape[0] != place.tensor.shape[1]:
            return None
        step, inner = place.tensor.stride()
        if columns.stride() != (inner, step):
            return None
        start = int(columns.storage_offset() - place.tensor.storage_offset()) // step
        total, rows = place.tensor.shape[0], columns.shape[1]
        return AffineCall(place.key, start, rows, total, 1, data, output.reshape(-1, rows), has_bias)

    def _convolution(self, args: Any, output: Tensor) -> AffineCall | None:
        data, weight, bias, stride, padding, dilation, transposed, _, groups = args
        place = self._find(weight)
        if place is None or transposed or place.tensor.shape != weight.shape:
            return None
        kernel = list(weight.shape[2:])
        spread = [list(values) * (len(kernel) // len(values)) for values in (stride, padding, dilation)]
        window = (kernel, spread[0], spread[1], spread[2])
        has_bias = bias is not None
        return AffineCall(place.key, 0, len(weight), len(weight), groups, data, output, has_bias, window)


def watch(
    model: nn.Module,
    state: State,
    batch: Batch,
    on_call: Callable[[AffineCall], Tensor | None],
    on_batch_norm: Callable[[Tensor], None] | None = None,
) -> Any:
    """Run the model and report every product of data with a weight, in the order of execution.

    Weights that the model uses under two names (tied ones) and those of operators that are no plain product (LSTM
    cells, transposed convolutions, embeddings) are not reported.

    Args:
        model: the module, in the mode that it is in.
        state: its state dict.
        batch: what to run it on.
        on_call: is told of each product; a tensor that it returns replaces the output.
        on_batch_norm: is told of the input of each batch normalisation.

    Returns:
        the model's output.
    """
    demand_parameters(model, state)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    weights = {
        name: state[name] for tied in names.values() for name in tied if len(tied) == 1 and state[name].dim() >= 2
    }
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would hide the projections
    try:
        with _AffineWatch(weights, on_call, on_batch_norm):
            return forward(model, state, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def affine_weights(model: nn.Module, state: State, batch: Batch) -> tuple[str, ...]:
    """The keys of all weights that are multiplied with data, in the order of their first use."""
    found: dict[str, None] = {}
    with mode_of(model):
        watch(model, state, batch, lambda call: found.setdefault(call.weight))
    return tuple(found)


def head_weight(model: nn.Module, state: State, batch: Batch) -> str:
    """The key of the last linear layer, whose output is the model's.

    Raises:
        CalibrationError: if the model does not end in a linear layer.
    """
    calls: list[AffineCall] = []

    def keep(call: AffineCall) -> None:
        calls[:] = [call]

    with mode_of(model):
        output = watch(model, state, batch, keep)
    if (
        calls
        and calls[0].window is None
        and calls[0].rows == calls[0].total
        and isinstance(output, Tensor)
        and output.dim() > 1
    ):
        logits = output.flatten(0, -2)
        expected = calls[0].output
        if (bias := bias_of(calls[0].weight, state)) is not None and not calls[0].has_bias:
            expected = expected + state[bias]
        if logits.shape == expected.shape and torch.equal(logits, expected):
            return calls[0].weight
    raise CalibrationError("the model does not end in a linear layer, so there is no head to fit")
