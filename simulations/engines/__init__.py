# mypy: implicit-reexport
"""Where a federation runs: inside this process, or in Flower's own engine."""

from .cluster import connected, demand_room
from .engine import ENGINES, demand_resources, on_engine, wait_for_clients
from .inline import InlineGrid, enter_task, run_inline
from .replay import ReplayGrid
