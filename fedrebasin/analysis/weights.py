"""A layer's weight: what the state dict says of it, and what it does to inputs."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fedrebasin.analysis.features import PARAMETRIZED
from fedrebasin.running import tensors_in
from fedrebasin.state import State
from fedrebasin.watching import module_named


def owner_of(key: str) -> str:
    """The layer that a key of the state dict belongs to, also where its weight is computed from it (weight norm).

    Example: ``owner_of("0.weight") == owner_of("0.parametrizations.weight.original0") == "0"``.
    """
    names = key.split(".")
    return ".".join(names[: names.index(PARAMETRIZED)] if PARAMETRIZED in names else names[:-1])


def linear_part(model: nn.Module, state: State, layer: str, inputs: Tensor) -> Tensor | None:
    """``W z``: the layer without its bias on given inputs; None for a layer that is not linear in them.

    Args:
        model: the module.
        state: whose weights to take.
        layer: its name.
        inputs: as the layer reads them, ``(examples, ...)``.

    Returns:
        float64, ``(examples, entries)``.
    """
    module = module_named(model, layer)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or not inputs.is_floating_point():
        return None
    own = own_state(state, layer)
    if "bias" in own:
        own["bias"] = torch.zeros_like(own["bias"])
    with torch.no_grad():
        output = torch.func.functional_call(module, own, (inputs.double(),))
    return next(tensors_in(output)).flatten(1)


def own_state(state: State, layer: str) -> dict[str, Tensor]:
    """A layer's part of a state dict, under its own names; floating-point tensors in float64."""
    name = layer.partition("#")[0]
    prefix = f"{name}." if name else ""
    return {
        key.removeprefix(prefix): tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if key.startswith(prefix)
    }


class _Weight(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> Tensor:
        return cast(Tensor, self.module.weight)


def weight_of(model: nn.Module, state: State, layer: str) -> Tensor | None:
    """The layer's weight in float64, computed where the state dict holds what it is computed from (weight norm).

    Args:
        model: the module.
        state: a state dict, or a part of one.
        layer: its name.

    Returns:
        None if the layer has no tensor of that name, or the state not all that it takes.
    """
    module, own = module_named(model, layer), own_state(state, layer)
    if "weight" in own:
        return own["weight"]
    if not is_parametrized(module, "weight") or not own.keys() >= set(module.state_dict()):
        return None
    with torch.no_grad():
        found = torch.func.functional_call(
            _Weight(module), {f"module.{key}": tensor for key, tensor in own.items()}, ()
        )
    return cast(Tensor, found)
