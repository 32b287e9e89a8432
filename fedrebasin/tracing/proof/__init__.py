# mypy: implicit-reexport
"""The proof of a spec: random members, random parameters, and the same function."""

from fedrebasin.tracing.proof.checking import check, holds, largest_change
