"""Example inputs from texts, and the spec of a model that is traced with them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.errors import RebasinError
from fedrebasin.spec import PermutationSpec

_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool", "complex64")
}
_MOST = 2**28


def example_inputs(texts: Sequence[str]) -> Any:
    """Example inputs from what was given on the command line.

    Args:
        texts: one shape, ``1,3,224,224`` or with its dtype ``int64:1,16``; or for each keyword argument of the model
            its name before that: ``input_ids:int64:1,16``.

    Returns:
        a tensor, or a dict of keyword tensors.

    Raises:
        RebasinError: if a text is none of these.
    """
    found = [_parse(text) for text in texts]
    named = {name: tensor for name, tensor in found if name}
    if named and len(named) < len(found):
        raise RebasinError(f"input {', '.join(texts)}: name each of them once, as in input_ids:int64:1,16")
    if not named and len(found) != 1:
        raise RebasinError(
            f"input {', '.join(texts)}: give one shape, or the names of the model's arguments before them"
        )
    return named or found[0][1]


def traced_spec(name: str, model: nn.Module, example: Any, what: str = "") -> PermutationSpec:
    """The spec of a model in evaluation mode.

    Args:
        name: of the model, for messages.
        model: the module; on the meta device it is traced without being run.
        example: inputs.
        what: the inputs, for messages.

    Raises:
        RebasinError: if the model cannot be traced with them.
    """
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    try:
        return PermutationSpec.trace(model.eval(), _on_meta(example) if on_meta else example)
    except RebasinError as error:
        raise RebasinError(f"model {name}{f' with --input {what}' if what else ''}: {error}") from None


def _parse(text: str) -> tuple[str, Tensor]:
    *front, sizes = text.split(":")
    kind = front.pop() if front and front[-1] in _DTYPES else "float32"
    name = front.pop() if front else ""
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if front or not shape or min(shape) < 1 or math.prod(shape) > _MOST or (name and not name.isidentifier()):
        raise RebasinError(
            f"input {text!r}: write positive whole numbers with commas, such as 1,3,224,224, with a name and a dtype "
            "before them where the model wants that, such as input_ids:int64:1,16"
        )
    dtype = _DTYPES[kind]
    if dtype.is_floating_point or dtype.is_complex:
        return name, torch.zeros(shape, dtype=dtype)
    # Two values, so that the check has a range to draw from.
    return name, (torch.arange(math.prod(shape)) % 2).reshape(shape).to(dtype)


def _on_meta(example: Any) -> Any:
    if isinstance(example, dict):
        return {key: value.to("meta") for key, value in example.items()}
    return example.to("meta")
