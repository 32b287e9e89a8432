# mypy: implicit-reexport
"""What is measured on a round."""

from .alignment import AlignmentProbe
from .pairs import BarrierProbe, ConnectivityProbe
from .spectrum import SpectrumProbe
