# mypy: implicit-reexport
"""What runs at the clients: sums on request, and alignment before anything leaves."""

from .align_mod import AlignMod
from .statistics_mod import StatisticsMod, register
