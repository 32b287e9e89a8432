"""The proof of a spec: random members, random parameters, and the same function."""

from fedrebasin.tracing.proof.checking import check, holds, largest_change

__all__ = [
    "check",
    "holds",
    "largest_change",
]
