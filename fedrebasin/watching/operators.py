"""Recognising the weights of a running model in its operators: by their memory, wherever they are multiplied."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.watching.products import Product

_aten = torch.ops.aten
_RUNNING_MEAN = "running_mean"


class Weights:
    """The tensors that the model runs with at the moment, found by their memory.

    Args:
        model: the module; inside of ``functional_call`` its parameters are the tensors of the state dict.
        tied: names of parameters that are one and the same tensor in the model.
    """

    def __init__(self, model: nn.Module, tied: frozenset[str]) -> None:
        self._tied = tied
        self._weights: dict[int, list[tuple[str, Tensor]]] = {}
        for key, tensor in model.named_parameters(remove_duplicate=False):
            if tensor.dim() >= 2:
                self._weights.setdefault(tensor.untyped_storage().data_ptr(), []).append((key, tensor))
        self._norms = {
            buffer.data_ptr(): key.removesuffix(_RUNNING_MEAN).removesuffix(".")
            for key, buffer in model.named_buffers(remove_duplicate=False)
            if key.rpartition(".")[2] == _RUNNING_MEAN
        }

    def norm(self, running_mean: Tensor | None) -> str | None:
        """The name of the module that owns the running mean, if one does."""
        return None if running_mean is None else self._norms.get(running_mean.data_ptr())

    def product(self, func: Any, args: Any, output: Any) -> Product | None:
        """The use of a weight that an operator is, if it is one."""
        if func is _aten.addmm.default:
            return self._product(args[1], args[2], output, has_bias=True)
        if func is _aten.mm.default:
            if (right := self._product(args[0], args[1], output)) is not None:
                return right
            left = self._product(args[1].t(), args[0].t(), output.t())
            return left and replace(left, is_affine=False)
        if func is _aten.bmm.default and (args[1].stride(0) == 0 or len(args[1]) == 1):  # one matrix for all
            return self._product(args[0].flatten(0, 1), args[1][0], output)
        if func is _aten.linear.default:
            return self._product(args[0], args[1].t(), output, has_bias=len(args) > 2 and args[2] is not None)
        if func is _aten.convolution.default:
            return self._convolution(args, output)
        if func is _aten.embedding.default and (found := self._find(args[0])) is not None:
            units = args[0].shape[1]
            return Product(found[0], 0, units, units, 1, args[1], output, inputs_first=True)
        return None

    def _find(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        for key, weight in self._weights.get(tensor.untyped_storage().data_ptr(), ()):
            first = weight.storage_offset()
            if first <= tensor.storage_offset() < first + max(weight.numel(), 1):
                return key, weight
        return None

    def _product(self, data: Tensor, columns: Tensor, output: Tensor, has_bias: bool = False) -> Product | None:
        """A product of data with rows of a weight of two dimensions, given transposed, or with its columns."""
        found = self._find(columns)
        if found is None or found[1].dim() != 2:
            return None
        key, weight = found
        offset = int(columns.storage_offset() - weight.storage_offset())
        for outputs_first in (weight, weight.t()):
            step, inner = outputs_first.stride()
            if columns.shape[0] == outputs_first.shape[1] and columns.stride() == (inner, step):
                rows, inputs_first = columns.shape[1], outputs_first is not weight
                return Product(
                    key,
                    start=offset // step,
                    rows=rows,
                    total=len(outputs_first),
                    groups=1,
                    inputs=data,
                    output=output.reshape(-1, rows),
                    inputs_first=inputs_first,
                    has_bias=has_bias,
                    is_affine=not inputs_first and key not in self._tied,
                )
        return None

    def _convolution(self, args: Any, output: Tensor) -> Product | None:
        data, kernel, bias, stride, padding, dilation, transposed, _, groups = args
        found = self._find(kernel)
        if found is None or found[1].shape != kernel.shape:
            return None
        size = list(kernel.shape[2:])
        spread = [list(values) * (len(size) // len(values)) for values in (stride, padding, dilation)]
        affine, units = not transposed and found[0] not in self._tied, output.shape[1]
        return Product(
            found[0],
            start=0,
            rows=units,
            total=units,
            groups=groups,
            inputs=data,
            output=output,
            is_convolution=True,
            inputs_first=transposed,
            has_bias=bias is not None,
            is_affine=affine,
            window=(size, spread[0], spread[1], spread[2]) if affine else None,
        )


def tied_parameters(model: nn.Module) -> frozenset[str]:
    """The names of parameters that are one and the same tensor under several names."""
    named = list(model.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in named)
    return frozenset(name for name, parameter in named if count[id(parameter)] > 1)
