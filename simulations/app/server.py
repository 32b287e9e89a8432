"""The server of ``flwr run .``: one strategy, judged on the test set after every round."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrebasin import RebasinError

from ..config import SimulationConfig
from ..engines import wait_for_clients
from ..report import Comparison, Origin, Study, write_results
from ..training import Federation, reproducible
from .run_strategy import run_strategy
from .strategies import parse_strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says; ``out``, an absolute path, is where results.json goes.

    Raises:
        RebasinError: if an option is not allowed or the federation has another number of nodes.
    """
    values: Mapping[str, Any] = context.run_config
    config = SimulationConfig.from_flower(values)
    name, out = str(values.get("strategy", "merge-many")), str(values.get("out", ""))
    parse_strategy(name)
    if out and not Path(out).is_absolute():
        raise RebasinError(f"out {out!r}: it must be an absolute path, since Flower runs apps in a folder of its own")
    wait_for_clients(grid, config.clients)
    federation, started = Federation(config), time.perf_counter()
    origin = Origin.now(federation.device, "flower")
    with reproducible():
        rows, _ = run_strategy(name, federation, grid)
    if out:
        found = Comparison(config, (name,), tuple(rows), {}, (), time.perf_counter() - started, origin)
        write_results(Path(out), Study((found,)))
