"""A slow and obvious oracle: move units and look whether the function changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedrebasin import PermutationSpec


def example(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_model(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with random parameters and positive variances."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
                if key.endswith("var"):
                    tensor.abs_().add_(0.1)
    return model


def outputs(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        out = torch.func.functional_call(model, state, (x,))
    return out[0] if isinstance(out, tuple) else out


def movable_alone(spec: PermutationSpec, model: nn.Module, x: Tensor) -> list[str]:
    """The axes said to stay whose first two neighbours can be swapped without a change of the function."""
    model = random_model(model)
    x = x.double() if x.is_floating_point() else x
    state = dict(model.state_dict())
    before = outputs(model, state, x)
    found = []
    for key, dim, _, _ in spec.unpermuted:
        size = state[key].shape[dim]
        if size == 1:
            continue
        for unit in range(size - 1):
            index = torch.arange(size)
            index[unit], index[unit + 1] = unit + 1, unit
            after = outputs(model, {**state, key: state[key].index_select(dim, index)}, x)
            if torch.allclose(before, after, rtol=1e-9, atol=1e-12):
                found.append(f"{key}[{dim}] {unit}")
    return found
