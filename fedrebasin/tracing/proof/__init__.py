# mypy: implicit-reexport
"""The proof of a spec: random members, random parameters, and the same function; and specs found in this way."""

from fedrebasin.tracing.proof.checking import check, holds, largest_change
from fedrebasin.tracing.proof.deriving import derive
from fedrebasin.tracing.proof.proven import proven
