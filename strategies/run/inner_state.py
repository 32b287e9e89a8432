"""What an inner strategy remembers from round to round, so that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ..traits import unwrap

#: Server momenta, copies of the global model, adapted clipping norms: whatever is arrays, or a number that changed.
Numbers = dict[str, int | float]


def numbers_of(strategy: Strategy) -> Numbers:
    """The plain numbers among the attributes of a strategy and of those that it wraps."""
    return {
        f"{depth}.{name}": value
        for depth, layer in enumerate(unwrap(strategy))
        for name, value in vars(layer).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def capture(strategy: Strategy, at_start: Numbers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays that a strategy keeps, and their form with the numbers that changed since the start, as JSON data."""
    tensors: dict[str, Tensor] = {}
    forms: dict[str, Any] = {}
    for depth, layer in enumerate(unwrap(strategy)):
        for name, value in vars(layer).items():
            where = f"{depth}.{name}"
            found = _arrays(value)
            if found is None:
                continue
            kind, arrays = found
            forms[where] = {"kind": kind, "keys": list(arrays)}
            for key, array in arrays.items():
                tensors[f"{where}/{key}"] = torch.from_numpy(np.array(array, copy=True))
    changed = {name: value for name, value in numbers_of(strategy).items() if at_start.get(name) != value}
    return tensors, {"arrays": forms, "numbers": changed}


def restore(strategy: Strategy, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Undo :func:`capture` on a strategy of the same make."""
    layers = dict(enumerate(unwrap(strategy)))
    for where, form in settings["arrays"].items():
        depth, _, name = where.partition(".")
        arrays = {key: tensors[f"{where}/{key}"].numpy() for key in form["keys"]}
        setattr(layers[int(depth)], name, _rebuilt(form["kind"], arrays))
    for where, value in settings["numbers"].items():
        depth, _, name = where.partition(".")
        setattr(layers[int(depth)], name, value)


def _arrays(value: object) -> tuple[str, dict[str, Any]] | None:
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    if isinstance(value, dict) and value and all(isinstance(item, np.ndarray | np.generic) for item in value.values()):
        return "dict", {str(key): np.asarray(item) for key, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, np.ndarray | np.generic) for item in value):
        return "list", {str(position): np.asarray(item) for position, item in enumerate(value)}
    return None


def _rebuilt(kind: str, arrays: dict[str, Any]) -> object:
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in arrays.items()})
    return list(arrays.values()) if kind == "list" else arrays
