"""What must not be averaged number by number, or cannot be written, found before any work: refused with the reason."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedrebasin.errors import DataError
from fedrebasin.state import dtype_name

_INTEGERS = (torch.int8, torch.uint8)
_SCALES = ("scale", "scales", "scale_inv", "zero_point", "zero_points", "absmax", "quant_map", "SCB")
_PACKED = re.compile(r"(?:^|\.)(?:qweight|qzeros|g_idx|weight_packed)$")
_FACTOR = re.compile(
    r"(?:^|[._])(?:lora_(?:A|B|up|down|embedding_A|embedding_B|magnitude_vector)|hada_w\d\w*|lokr_w\d)\b"
)


def demand_mergeable(path: Path, state: Mapping[str, Tensor], known: Collection[str] | None) -> None:
    """Refuse quantised weights and factors of adapters, whose means are not those of what they stand for.

    Args:
        path: of the checkpoint, for the message.
        state: its tensors.
        known: the keys of the model or spec; factors that it has are its own weights. None where nothing is known.

    Raises:
        DataError: with the key and the reason.
    """
    if found := _quantised(state):
        key, why = found
        raise DataError(
            f"{path}: {key} is {dtype_name(state[key].dtype)}{why}: quantised numbers have no mean of their own; "
            "dequantise the model and save it, then merge"
        )
    factors = [key for key in state if _FACTOR.search(key)]
    if factors and not (known is not None and any(_FACTOR.search(key) for key in known)):
        raise DataError(
            f"{path}: {factors[0]} is a factor of an adapter: the mean of products is no product of means; merge the "
            "adapter into its base (merge_and_unload) and save that, then merge"
        )


def _quantised(state: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """A tensor whose numbers mean something only together with others, and why."""
    for key, tensor in state.items():
        if _PACKED.search(key) and not tensor.is_floating_point():
            return key, ", packed"
        narrow = tensor.dtype in _INTEGERS or (tensor.is_floating_point() and tensor.itemsize == 1)
        if narrow and tensor.numel() > 1:
            module = key.rpartition(".")[0]
            beside = (
                f"{start}{scale}" for scale in _SCALES for start in (f"{module}." * bool(module), f"{key}_", f"{key}.")
            )
            if (scale := next((one for one in beside if one in state), None)) is not None:
                return key, f" with {scale}"
    return None
