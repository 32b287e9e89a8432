"""fedrebasin: permutation-aligned federated learning, a Flower plugin.

The library (this package) needs torch, numpy and scipy only; ``fedrebasin.strategies`` plugs it into Flower and
``fedrebasin.simulations`` runs and compares federations.
"""

from pathlib import Path as _Path

from fedrebasin.axis import Axis, Factor, Layout
from fedrebasin.errors import (
    CalibrationError,
    DataError,
    MatchingError,
    MergeError,
    RebasinError,
    SpecError,
    TraceError,
)
from fedrebasin.permutation import Permutation
from fedrebasin.spec import Group, PermutationSpec, Unpermuted

__version__ = "0.1.0"

# In a checkout strategies/ and simulations/ lie beside this folder, in a wheel inside it.
_here = _Path(__file__).resolve().parent
if not (_here / "strategies").is_dir():
    __path__.append(str(_here.parent))

__all__ = [
    "Axis",
    "CalibrationError",
    "DataError",
    "Factor",
    "Group",
    "Layout",
    "MatchingError",
    "MergeError",
    "Permutation",
    "PermutationSpec",
    "RebasinError",
    "SpecError",
    "TraceError",
    "Unpermuted",
]
