"""Which entry of a file is the model: trainers keep it beside an optimiser, an averaged copy and much else."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrebasin.errors import DataError
from fedrebasin.keys import is_averaged

#: Where training scripts keep the state dict, most usual first.
_USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
_DEEPEST = 3
_SHOWN = 5


def model_in(path: Path, loaded: Any, wanted: str = "") -> tuple[Mapping[str, Any], str]:
    """The state dict in what a file holds, and a line that says what was taken where there was a choice.

    Args:
        path: of the file, for messages.
        loaded: its content.
        wanted: the entry, by its name, with dots where it lies in another one; "" for the usual one.

    Raises:
        DataError: if there is none, or several that are as likely, with their names.
    """
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"{path}: no state dict but a {type(loaded).__name__}: expected tensors by name, also under {_USUAL[0]!r}"
        )
    found = dict(_candidates(loaded, _DEEPEST))
    if wanted:
        if wanted not in found:
            raise DataError(f"{path}: no state dict under {wanted!r}: there are {_names(found) or 'none'}")
        return _texts(found[wanted]), ""
    direct = [name for name in found if "." not in name or name in loaded]
    usual = [name for name in _USUAL if name in found]
    likely = usual or _largest_or_itself(found, direct or list(found))
    if not likely:
        keys = ", ".join(map(str, list(loaded)[:_SHOWN]))
        raise DataError(
            f"{path}: no state dict in it (its keys are {keys}): expected tensors by name, also under {_USUAL[0]!r}"
        )
    if len(likely) > 1 and not usual:
        raise DataError(f"{path}: several state dicts, {_names(likely)}: choose one with --key")
    others = [name for name in found if name and name != likely[0]] if likely[0] else []
    line = f"{path}: took the entry {likely[0]}, not {_names(others)} (--key chooses)" if others else ""
    return _texts(found[likely[0]]), line


def _candidates(value: Mapping[Any, Any], depth: int, name: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Whatever has tensors by name in it, by its own name."""
    if any(isinstance(entry, Tensor) for entry in value.values()):
        yield name, value
    if depth:
        for key, entry in value.items():
            if isinstance(entry, Mapping) and isinstance(key, str):
                yield from _candidates(entry, depth - 1, f"{name}.{key}" if name else key)


def _largest_or_itself(found: Mapping[str, Mapping[Any, Any]], names: list[str]) -> list[str]:
    """The file's own tensors where they are the most, else the entries that are no averaged copies, else those."""
    if "" in found and all(_number(found[""]) >= _number(found[name]) for name in names):
        return [""]
    inside = [name for name in names if name]
    return [name for name in inside if not is_averaged(name)] or inside


def _number(entries: Mapping[Any, Any]) -> int:
    return sum(isinstance(entry, Tensor) for entry in entries.values())


def _texts(entries: Mapping[Any, Any]) -> Mapping[str, Any]:
    return {str(key): value for key, value in entries.items()}


def _names(names: Any) -> str:
    listed = [name for name in names if name]
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
