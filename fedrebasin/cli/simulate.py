"""``fedrebasin simulate``: one strategy in Flower's own engine, as ``flwr run .`` runs it, with its status checked."""

import json as json_format
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import fedrebasin
from fedrebasin.cli import options as opt
from fedrebasin.cli.doctor import flwr_command
from fedrebasin.cli.show import AsJson, FailedError, leaving, print_json, print_table, say
from fedrebasin.errors import RebasinError

POLL_SECONDS = 2.0
APP = """
[project]
name = "fedrebasin-simulation"
version = "{version}"
description = "One federation, as fedrebasin simulate runs it"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedrebasin"

[tool.flwr.app.components]
serverapp = "fedrebasin.simulations.app.server:app"
clientapp = "fedrebasin.simulations.app.client:app"

[tool.flwr.app.config]
{config}
"""


@opt.run_config(clients=2)
def simulate(
    strategy: Annotated[str, typer.Option(help=f"One of {opt.STRATEGY}", autocompletion=opt.complete_strategy)] = (
        "merge-many"
    ),
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json.")] = None,
    json: Annotated[bool, AsJson] = False,
    **values: Any,
) -> None:
    """Run one strategy in Flower's simulation engine and check that the run succeeded: exit code 1 if not.

    The local SuperLink that runs it stays up for the next run, as after flwr run.

    Example: fedrebasin simulate --strategy rebasin --clients 4 --rounds 2 --init shared
    """
    from fedrebasin.devices import pick_device
    from fedrebasin.simulations import SimulationConfig, parse_strategy, read_results

    config = SimulationConfig(**values)
    parse_strategy(strategy)
    pick_device(config.device)
    if config.data_dir:
        values["data_dir"] = str(Path(config.data_dir).resolve())  # Flower runs apps in a folder of its own
        config = SimulationConfig(**values)
    command = flwr_command()
    if command is None:
        raise RebasinError("the flwr command is not there: pip install flwr, and put its folder on the PATH")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out" if out is None else out.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "results.json"
        if results.exists():
            raise RebasinError(f"out {out}: there is a results.json of another run; choose another folder")
        app = write_app(Path(place) / "app", {**config.to_flower(), "strategy": strategy, "out": str(folder)})
        run_id = _submit(command, app, config.clients)
        with leaving(lambda: f"run {run_id} goes on in Flower's SuperLink; 'flwr stop {run_id}' ends it"):
            status, details = _follow(command, run_id)
        if status != "finished:completed":
            raise FailedError(f"run {run_id} ended as {status}: {details or 'its log says why'} (flwr log {run_id})")
        if not results.exists():
            raise FailedError(f"run {run_id} completed without a usable model: flwr log {run_id}")
        rows = [row for one in read_results(results).comparisons for row in one.rows]
    if json:
        print_json({"run_id": run_id, "status": status, "rows": [row.to_json() for row in rows]})
        return
    table = Table(title=f"{strategy}: {config.clients} clients, {config.init} init, {config.dataset}, {config.model}")
    for column in ("round", "accuracy", "loss", "calibrated loss", "beta", "server seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = row.figures
        numbers = (figures.loss, figures.calibrated_loss, figures.beta)
        shown = (f"{number:.3f}" for number in numbers)
        table.add_row(str(row.round), f"{100 * figures.accuracy:.1f} %", *shown, f"{row.seconds:.2f}")
    lines = [f"run {run_id}: {status}"] + ([f"written: {results}"] if out is not None else [])
    print_table(table, lines)


def write_app(folder: Path, config: Mapping[str, str | int | float]) -> Path:
    """A Flower app that consists of a pyproject.toml: its server and clients are those of the installed package.

    Args:
        folder: new.
        config: the run config.

    Returns:
        the folder.
    """
    folder.mkdir(parents=True)
    lines = "\n".join(f"{key} = {json_format.dumps(value)}" for key, value in config.items())
    text = APP.format(version=fedrebasin.__version__, config=lines)
    (folder / "pyproject.toml").write_text(text.lstrip(), encoding="utf-8")
    (folder / "README.md").write_text("One federation.\n", encoding="utf-8")
    return folder


def _environment() -> dict[str, str]:
    """A SuperLink that is started now runs with this; one that runs already keeps its own."""
    wanted = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "OMP_NUM_THREADS": "1"}
    paths = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**wanted, **os.environ, "PATH": paths}


def _flwr(command: str, *arguments: str) -> dict[str, Any]:
    """What a flwr command answers as JSON.

    Raises:
        FailedError: with what it says instead.
    """
    done = subprocess.run(
        [command, *arguments, "--format", "json"], env=_environment(), capture_output=True, text=True, check=False
    )
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json_format.loads(done.stdout[start:])
    except ValueError:
        answer = {"success": False, "error-message": (done.stderr or done.stdout)[-300:]}
    if done.returncode != 0 or not answer.get("success", True):
        reason = " ".join(str(answer.get("error-message", done.stderr[-300:])).split())
        raise FailedError(f"flwr {arguments[0]}: {reason or f'exit code {done.returncode}'}")
    return answer


def _submit(command: str, app: Path, clients: int) -> str:
    federation = f"num-supernodes={clients}"
    arguments = ("run", str(app), "--federation-config", federation)
    try:
        answer = _flwr(command, *arguments)
    except FailedError as error:
        if "start local SuperLink" not in str(error):
            raise
        say("Flower's SuperLink is slow to start on this machine; once more")
        answer = _flwr(command, *arguments)
    if "run-id" not in answer:
        raise FailedError(f"flwr run gave no run id: {answer}")
    return str(answer["run-id"])


def _follow(command: str, run_id: str) -> tuple[str, str]:
    """Show a run's log on standard error until it has ended; its status, and what Flower says about it."""
    say(f"run {run_id}; its log:")
    log = subprocess.Popen([command, "log", run_id, "--stream"], env=_environment(), stdout=sys.stderr.fileno())
    try:
        while True:
            runs = _flwr(command, "list", "--run-id", run_id)["runs"]
            status = str(runs[0]["status"])
            if status.startswith("finished"):
                time.sleep(POLL_SECONDS)  # for the last lines of the log
                return status, str(runs[0].get("status-details") or "")
            time.sleep(POLL_SECONDS)
    finally:
        log.terminate()
        log.wait()
