"""Where the server, or a client that is asked for sums, computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedrebasin import RebasinError


def pick_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``"auto"`` is the GPU where there is one.

    Raises:
        RebasinError: if there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise RebasinError(f"device {device!r} is not one: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None


def move(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device."""
    return {key: tensor.to(device) for key, tensor in state.items()}
