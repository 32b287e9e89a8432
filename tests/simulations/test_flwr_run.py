"""``flwr run .`` from the root of the repository, through Flower's own SuperLink and engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedrebasin.simulations import read_results

ROOT = Path(__file__).parents[2]
CHOSEN = "width=16 local-epochs=1 strategy='rebasin' rounds=2 init='shared'"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def stop_processes_of(home):
    """The local SuperLink stays up on purpose; its command line names its folder."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(home).encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGTERM)
        except (OSError, ValueError):
            continue


@pytest.fixture
def flower(tmp_path):
    command = shutil.which("flwr", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(tmp_path / "flower-home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "OMP_NUM_THREADS": "1",
    }

    def run(*arguments):
        return subprocess.run(
            [command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    yield run
    stop_processes_of(tmp_path / "flower-home")


@pytest.mark.engine
def test_a_run_finishes_with_the_strategys_metrics(flower, tmp_path):
    done = flower("run", ".", "--stream", "-c", f"{CHOSEN} out='{tmp_path / 'out'}'")
    runs = json.loads(flower("list", "--format", "json").stdout)["runs"]
    assert [run["status"] for run in runs] == ["finished:completed"], done.stdout
    rows = read_results(tmp_path / "out").comparisons[0].rows
    assert [(row.strategy, row.round) for row in rows] == [("rebasin", 1), ("rebasin", 2)]
    assert 0 < rows[-1].metrics["rebasin-similarity"] <= 1
    assert rows[-1].metrics["rebasin-replies-set-aside"] == 0
    assert "rebasin-units-moved" in done.stdout
