"""What is used of Flower beyond its documented modules, in one place: a test looks for it in the installed version."""

from __future__ import annotations

from flwr.common import log
from flwr.serverapp.strategy.fedopt import FedOpt

__all__ = ["FedOpt", "is_legacy", "log"]

#: Where the server's side lived before flwr.serverapp.
_LEGACY = ("flwr.server.", "flwr.compat.")


def is_legacy(part: object) -> bool:
    """Whether an object is of Flower's former server API or derived from it; that API is not loaded to tell."""
    return any(kind.__module__.startswith(_LEGACY) for kind in type(part).__mro__)
