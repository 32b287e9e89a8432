"""The statistics that a client answers, by the names that they travel under."""

from __future__ import annotations

from typing import Any, TypeVar

from fedrebasin.errors import CalibrationError
from fedrebasin.sums.algebra import Statistic

Kind = TypeVar("Kind", bound=type[Statistic[Any]])

_KINDS: dict[str, type[Statistic[Any]]] = {}


def register_statistic(kind: Kind) -> Kind:
    """Let clients answer a statistic: a class decorator, in the library's files and in a user's.

    A server can ask for nothing else, so that whoever registers one says that its sums may leave a client: they must
    hold nothing of a single example. The class is a dataclass, its fields are numbers, strings, tuples of them, state
    dicts or moments by name; ``name`` is a class attribute.

    Raises:
        CalibrationError: if another statistic has the name.
    """
    name, known = str(kind.name), _KINDS.get(str(kind.name), kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise CalibrationError(f"statistic {name!r} is {known.__name__} already: choose another name")
    _KINDS[name] = kind
    return kind


def registered_statistics() -> tuple[type[Statistic[Any]], ...]:
    """The statistics that are registered at the moment, by name."""
    return tuple(kind for _, kind in sorted(_KINDS.items()))
