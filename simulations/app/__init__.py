# mypy: implicit-reexport
"""The Flower app of the simulations: clients, server, and one strategy run and judged."""

from .client import app as client_app
from .client import make_client_app
from .judge import Judge, judge_of
from .moved_units import MovedUnits
from .run_strategy import Progress, run_strategy, silent
from .server import app as server_app
from .strategies import demand_choices, make_strategy, parse_strategy
