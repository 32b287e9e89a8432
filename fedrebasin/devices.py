"""Where the server, or a client that is asked for sums, computes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedrebasin.errors import RebasinError, one_line


def pick_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``"auto"`` is the GPU where there is one.

    Raises:
        RebasinError: if there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise RebasinError(f"device {device!r} is not one: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if found.type != "cuda":
        try:
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise RebasinError(f"device {device}: {one_line(error)}: use 'auto' or 'cpu'") from None
    elif (found.index or 0) >= (there := torch.cuda.device_count()):
        raise RebasinError(f"device {device}: torch finds {there or 'no'} GPUs here: use 'auto' or 'cpu'")
    return found


def move(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device."""
    return {key: tensor.to(device) for key, tensor in state.items()}


@contextmanager
def at_hand(model: nn.Module, state: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """What a model keeps beside a state dict (masks, frozen parameters) on a device for a while.

    Afterwards the model holds the very tensors that it held before.

    Args:
        model: the module.
        state: what it will be run with: these names are left where they are.
        device: where it will be run.
    """
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    for prefix, module in model.named_modules():
        for home in (module._parameters, module._buffers):
            for name, tensor in home.items():
                full = f"{prefix}.{name}" if prefix else name
                if tensor is not None and full not in state and tensor.device != device:
                    before.append((home, name, tensor))
    try:
        for home, name, tensor in before:
            moved = tensor.detach().to(device)
            home[name] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
        yield
    finally:
        for home, name, tensor in before:
            home[name] = tensor
