"""How a model is run: by its forward, or by a function of it that the user gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedrebasin.running import tensors_in

#: What is traced and proven: ``(model, *inputs) -> outputs``.
Forward = Callable[..., Any]
Given = tuple[tuple[Any, ...], dict[str, Any]]

PREFIX = "model."


def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What modules are for."""
    return model(*args, **kwargs)


@dataclass(frozen=True)
class Usage:
    """A model and how it is run.

    Args:
        model: the module.
        given: positional and keyword arguments of ``forward`` behind the model.
        forward: what is run.
        missed: why less is run than what the model trains on; "" if all is.
        otherwise: what can be run where this cannot be exported.
    """

    model: nn.Module
    given: Given
    forward: Forward = call
    missed: str = ""
    otherwise: "Usage | None" = None

    @property
    def module(self) -> nn.Module:
        """A module of two arguments, the positional and the keyword ones; the model's keys have :data:`PREFIX`."""
        return _Used(self.model, self.forward)

    def map(self, change: Callable[[Any], Any]) -> "Usage":
        """The same with each tensor of the inputs, and whatever else is in them, changed."""
        return replace(self, given=tree_map(change, self.given))

    def outputs(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Every tensor that comes out with these parameters and buffers; a training step may write into copies."""
        own = state if self.forward is call else {key: tensor.clone() for key, tensor in state.items()}
        named = {PREFIX + key: tensor for key, tensor in own.items()}
        found: list[Tensor] = torch.func.functional_call(self.module, named, self.given, tie_weights=False)
        return found


class _Used(nn.Module):
    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._run = forward

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """All tensors in what comes out, whatever it is made of."""
        return list(tensors_in(self._run(self.model, *args, **kwargs)))


def as_call(example_inputs: Any) -> Given:
    """Positional and keyword arguments: of a tensor, a tuple of tensors, or a dict of keyword tensors."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}
