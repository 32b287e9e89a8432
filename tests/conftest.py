"""No test downloads anything; the commands of Flower run in a home of their own."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


ORDER = os.environ.get("FEDREBASIN_TEST_ORDER", "")


def pytest_report_header():
    return f"FEDREBASIN_TEST_ORDER={ORDER}" if ORDER else None


@pytest.hookimpl(tryfirst=True)  # pytest then brings together what shares a module's fixtures
def pytest_collection_modifyitems(items):
    """With a seed the files come in a random order, and the tests of each."""
    if ORDER:
        shuffled = random.Random(ORDER)
        files = sorted({item.path for item in items})
        place = dict(zip(shuffled.sample(files, len(files)), range(len(files)), strict=True))
        items.sort(key=lambda item: (place[item.path], shuffled.random()))


def _skips_fail(report):
    """Where every optional package is installed, nothing is left out."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FEDREBASIN_ALL_EXTRAS"):
        report.outcome, report.longrepr = "failed", f"skipped with all extras installed: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _skips_fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _skips_fail(report)
    return report


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("FEDREBASIN_OFFLINE", "1")
    monkeypatch.setenv("FEDREBASIN_DATA", "/no/such/folder")


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


# The command `flwr`, but for the 15 seconds that it gives its own SuperLink to start: a busy machine needs more.
PATIENT_FLWR = """
from flwr.cli import constant
assert constant.LOCAL_SUPERLINK_STARTUP_TIMEOUT
constant.LOCAL_SUPERLINK_STARTUP_TIMEOUT = 300
from flwr.cli.app import app
app()
"""


@pytest.fixture
def flower(tmp_path):
    """Runs ``flwr`` with arguments, from the root of the repository; whatever it started is stopped at the end.

    ``flower.of(folder)`` is the same for the commands of another environment.
    """
    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(), "FLWR_LOCAL_CONTROL_API_PORT": free_port()}

    def of(commands):
        path = f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {
            **os.environ,
            "PATH": path,
            "FLWR_HOME": str(tmp_path / "flower-home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            **ports,
        }
        command = [str(Path(commands) / "python"), "-c", PATIENT_FLWR]

        def run(*arguments):
            return subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )

        return run

    run = of(Path(sys.executable).parent)
    run.of = of
    yield run
    stop_processes_of(tmp_path / "flower-home")
