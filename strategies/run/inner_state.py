"""What an inner strategy remembers from round to round, so that a resumed run goes on as if nothing had happened.

Server momenta, copies of the global model, adapted clipping norms: whatever is arrays, or a number that changed. Only
attributes that the strategy has before its first round are written down and restored, arrays where it has arrays or
nothing yet, numbers where it has numbers.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ..traits import unwrap

#: Values of attributes, by ``depth.name``: the depth of the strategy among those that wrap one another.
Attributes = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def plain_settings(strategy: Strategy) -> dict[str, Any]:
    """The numbers among the attributes of a strategy and of those that it wraps; no texts, which may be secrets."""
    return {where: value for where, value in attributes(strategy) if isinstance(value, bool | int | float)}


def attributes(strategy: Strategy) -> Iterator[tuple[str, Any]]:
    """All attributes of a strategy and of those that it wraps."""
    for depth, layer in enumerate(unwrap(strategy)):
        for name, value in vars(layer).items():
            yield f"{depth}.{name}", value


def undeclared(strategy: Strategy, declared: Attributes) -> list[str]:
    """The attributes with arrays that were not there before the first round: they are not written down."""
    return [where for where, value in attributes(strategy) if where not in declared and _arrays(value) is not None]


def unwritten(strategy: Strategy) -> list[str]:
    """The attributes that hold arrays in a form that is not written down: tensors, one array, records in a list."""
    return [where for where, value in attributes(strategy) if _arrays(value) is None and _holds_arrays(value)]


def at_start(strategy: Strategy) -> Attributes:
    """What may be restored later: the attributes that hold numbers, arrays or nothing yet."""
    return {where: value for where, value in attributes(strategy) if _is_number(value) or _may_hold_arrays(value)}


def capture(strategy: Strategy, declared: Attributes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays that a strategy keeps, and their form with the numbers that changed since the start, as JSON data."""
    tensors: dict[str, Tensor] = {}
    forms: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for where, value in attributes(strategy):
        if where not in declared:
            continue
        if _is_number(value) and _is_number(declared[where]) and value != declared[where]:
            numbers[where] = value
        found = _arrays(value) if _may_hold_arrays(declared[where]) else None
        if found is not None:
            kind, arrays = found
            forms[where] = {"kind": kind, "keys": list(arrays)}
            tensors |= {f"{where}/{key}": torch.from_numpy(np.array(array, copy=True)) for key, array in arrays.items()}
    return tensors, {"arrays": forms, "numbers": numbers}


def rebuild(
    tensors: Mapping[str, Tensor], form: Mapping[str, Any], declared: Attributes, model: Shapes
) -> dict[str, Any]:
    """The attributes that :func:`capture` wrote down, nothing set yet.

    Args:
        tensors: of all attributes.
        form: the JSON data.
        declared: what may be restored.
        model: the shapes of the global model, which arrays have that go by its keys or are as many.

    Raises:
        ValueError: naming an attribute that was not declared so, or whose arrays have another form.
        Exception: of any kind, if this is not what was captured.
    """
    found: dict[str, Any] = {}
    for where, described in form["arrays"].items():
        if where not in declared or not _may_hold_arrays(declared[where]):
            raise ValueError(f"{where}: not an attribute that holds arrays")
        arrays = {key: tensors[f"{where}/{key}"].numpy() for key in described["keys"]}
        _check_form(where, described["kind"], arrays, declared[where], model)
        found[where] = _rebuilt(described["kind"], arrays)
    for where, value in form["numbers"].items():
        if where not in declared or not _is_number(declared[where]):
            raise ValueError(f"{where}: not an attribute that holds a number")
        if not _is_number(value) or not math.isfinite(float(value)):
            raise ValueError(f"{where}: not a finite number")
        found[where] = value
    return found


def restore(strategy: Strategy, values: Mapping[str, Any]) -> None:
    """Set the attributes that :func:`rebuild` gave, on a strategy of the same make."""
    for where, value in values.items():
        setattr(*_owner(strategy, where), value)


class Memory:
    """What an inner strategy remembers, so that another run can begin without it.

    Args:
        strategy: the inner strategy.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._before: dict[str, Any] | None = None

    def begin(self) -> list[str]:
        """Note what the strategy has before its first run; before a later one go back to that.

        Returns:
            the attributes that were changed: numbers, arrays, and arrays that the strategy did not have then.
        """
        if self._before is None:
            self._before = copy.deepcopy(dict(at_start(self._strategy)))
            return []
        now = dict(attributes(self._strategy))
        changed = [where for where, value in self._before.items() if where in now and not _same(now[where], value)]
        restore(self._strategy, copy.deepcopy({where: self._before[where] for where in changed}))
        added = undeclared(self._strategy, self._before)
        for where in added:
            delattr(*_owner(self._strategy, where))
        return changed + added


def _owner(strategy: Strategy, where: str) -> tuple[object, str]:
    """The strategy, of those that wrap one another, with an attribute, and the attribute's name."""
    depth, _, name = where.partition(".")
    return list(unwrap(strategy))[int(depth)], name


def _same(now: Any, before: Any) -> bool:
    held = _arrays(now), _arrays(before)
    if held == (None, None):
        return type(now) is type(before) and bool(now == before)
    if held[0] is None or held[1] is None or held[0][0] != held[1][0] or held[0][1].keys() != held[1][1].keys():
        return False
    return all(np.array_equal(array, held[1][1][key], equal_nan=True) for key, array in held[0][1].items())


def _check_form(where: str, kind: str, arrays: Mapping[str, Any], before: Any, model: Shapes) -> None:
    held = _arrays(before)
    if held is not None and kind != held[0]:
        raise ValueError(f"{where}: a {kind} where the strategy has a {held[0]} at the start")
    if held is not None and held[1]:
        if _forms(arrays) != _forms(held[1]):
            raise ValueError(f"{where}: other arrays than the strategy has at the start")
        return
    if kind == "list" and len(arrays) == len(model):
        shapes = dict(zip(arrays, model.values(), strict=True))
    else:
        shapes = {key: model[key] for key in arrays if key in model}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{where}: {key} has shape {arrays[key].shape} instead of {shape}")


def _forms(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (array.shape, array.dtype) for key, array in arrays.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _may_hold_arrays(value: object) -> bool:
    """Whether an attribute has arrays at the start, or nothing yet."""
    return value is None or _arrays(value) is not None or (isinstance(value, dict | list) and not value)


def _holds_arrays(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_arrays, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_arrays, value))
    return isinstance(value, np.ndarray | Array | Tensor | torch.optim.Optimizer)


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
    if kind == "list":
        return list(arrays.values())
    if kind == "dict":
        return arrays
    raise ValueError(f"arrays of kind {kind!r}")
