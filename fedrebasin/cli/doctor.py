"""``fedrebasin doctor``: whether everything that fedrebasin needs is there and works, and what to do if not."""

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedrebasin.cli.bars import Bars
from fedrebasin.cli.show import AsJson, FailedError, print_json, print_table

OK, NOTE, BROKEN = "ok", "note", "broken"
STYLES = {OK: "green", NOTE: "yellow", BROKEN: "red"}
PYTHON = (3, 11)
#: Packages, the oldest version that works, and whether nothing works without them.
PACKAGES = (
    ("torch", "2.6", True),
    ("torchvision", "0.21", True),
    ("numpy", "1.26", True),
    ("scipy", "1.11", True),
    ("scikit-learn", "1.4", True),
    ("safetensors", "0.4", True),
    ("flwr", "1.29", True),
    ("ray", "", False),
    ("matplotlib", "3.8", True),
    ("flwr-datasets", "0.5", False),
)
#: The newest versions that the tests have run with, of those whose newer ones may well differ.
TESTED = {"torch": "2.15", "flwr": "1.42"}
MODULES = {"scikit-learn": "sklearn", "flwr-datasets": "flwr_datasets"}
SIMULATION = 'without it Flower\'s simulation does not run: pip install "flwr[simulation]"'
ADVICE = {"ray": SIMULATION, "flwr-datasets": 'optional, for its partitioners: pip install "fedrebasin[datasets]"'}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: its name.
        found: what is there.
        verdict: ``ok``, ``note`` or ``broken``.
        advice: what to do; "" if nothing.
    """

    what: str
    found: str
    verdict: str
    advice: str = ""


def doctor(
    simulation: Annotated[
        bool, typer.Option(help="Start Flower's simulation engine with two clients, too: half a minute.")
    ] = False,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Look at versions, devices, Flower and the environment; exit code 1 if something that is needed is broken.

    Example: fedrebasin doctor --simulation
    """
    with Bars() as bars:
        findings = [_python(), *_packages(bars), _flwr_command(), _devices(), _memory(), _matching(), *environment()]
        if simulation:
            bars("Flower's simulation", 0, None)
            findings.append(_checked("Flower's simulation", "runs two clients", _simulate, SIMULATION))
    broken = [finding.what for finding in findings if finding.verdict == BROKEN]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(_table_of(findings))
    if broken:
        raise FailedError(f"broken: {', '.join(broken)}")


def _table_of(findings: list[Finding]) -> Table:
    table = Table(title="fedrebasin doctor")
    for column in ("", "found", "verdict", "what to do"):
        table.add_column(column)
    for finding in findings:
        verdict = Text(finding.verdict, STYLES[finding.verdict])
        table.add_row(finding.what, finding.found, verdict, finding.advice)
    return table


def _python() -> Finding:
    new_enough = sys.version_info[:2] >= PYTHON
    oldest = ".".join(map(str, PYTHON))
    return Finding(
        "Python",
        f"{platform.python_version()} on {platform.platform(terse=True)}",
        OK if new_enough else BROKEN,
        "" if new_enough else f"Python {oldest} or newer is needed",
    )


def _packages(bars: Bars) -> list[Finding]:
    findings = []
    for place, (name, oldest, needed) in enumerate(PACKAGES):
        bars("packages", place, len(PACKAGES))
        advice = ADVICE.get(name, f'pip install --upgrade "{name}{">=" if oldest else ""}{oldest}"')
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", BROKEN if needed else NOTE, advice))
            continue
        finding = _checked(name, version, partial(importlib.import_module, MODULES.get(name, name)), advice)
        if finding.verdict == OK and numbers(version) < numbers(oldest):
            finding = Finding(name, version, BROKEN if needed else NOTE, advice)
        elif finding.verdict == OK and name in TESTED and numbers(version)[:2] > numbers(TESTED[name]):
            finding = Finding(name, version, NOTE, f"newer than {TESTED[name]}, the newest that was tested")
        findings.append(finding)
    return findings


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: ``2.15.0+cpu`` is (2, 15, 0)."""
    found = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def _checked(what: str, found: str, work: Callable[[], object], advice: str) -> Finding:
    """The finding of something that works, or of how it does not."""
    try:
        work()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return Finding(what, f"{found}, but {reason}", BROKEN, advice)
    return Finding(what, found, OK)


def _flwr_command() -> Finding:
    place = flwr_command()
    advice = "" if place else "fedrebasin simulate and flwr run need it: pip install flwr, and its folder on PATH"
    return Finding("flwr command", place or "not found", OK if place else NOTE, advice)


def flwr_command() -> str | None:
    """Flower's command: of this Python's environment, or else the first on the PATH."""
    own = os.path.dirname(sys.executable)
    return shutil.which("flwr", path=own) or shutil.which("flwr")


def _devices() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores", OK)
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return _checked("device", ", ".join(names), lambda: torch.ones(8, device="cuda").sum().item(), "--device cpu")


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "unknown", OK)
    few = size < 4
    return Finding("memory", f"{size:.0f} GB", NOTE if few else OK, "use small models and --jobs 1" if few else "")


def _matching() -> Finding:
    """Trace, permute and match a small network: the core, end to end."""

    def work() -> None:
        import torch

        from fedrebasin.matching import WeightMatching
        from fedrebasin.models import MLP
        from fedrebasin.spec import Permutation, PermutationSpec

        model = MLP(8, width=16, depth=2)
        spec = PermutationSpec.trace(model, torch.zeros(2, 8))
        a = model.state_dict()
        b = Permutation.random(spec, torch.Generator().manual_seed(0)).apply(a)
        if WeightMatching()(spec, reference=a, candidate=b).similarity < 1 - 1e-6:
            raise RuntimeError("a permuted network was not recognised")

    started = time.perf_counter()
    finding = _checked("matching", "", work, "reinstall fedrebasin and torch")
    found = (
        finding.found.removeprefix(", but ") or f"recognises a permuted network, {time.perf_counter() - started:.1f} s"
    )
    return Finding(finding.what, found, finding.verdict, finding.advice)


def _simulate() -> None:
    from fedrebasin.simulations import SimulationConfig, compare

    compare(SimulationConfig(clients=2, width=8, local_epochs=1), ["fedavg"], engine="flower")


def environment() -> list[Finding]:
    """The variables that change what fedrebasin and Flower do, each with what it means here."""
    value = os.environ.get
    wanted = {
        "OMP_NUM_THREADS": (
            NOTE if (os.cpu_count() or 1) > 1 else OK,
            "set it to 1 for Flower's simulation: otherwise each client starts a thread for every core",
        ),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": (
            NOTE,
            "set it to 1 for flwr run: without it every run installs the app's dependencies anew (simulate sets it)",
        ),
    }
    findings = [
        Finding(name, found, OK) if (found := value(name)) else Finding(name, "not set", *unset)
        for name, unset in wanted.items()
    ]
    meanings = {
        "CUDA_VISIBLE_DEVICES": "which GPUs are used; unset: all",
        "FLWR_HOME": "where Flower keeps its runs; unset: ~/.flwr",
        "FLWR_TELEMETRY_ENABLED": "set it to 0 and Flower reports nothing about its use",
        "FEDREBASIN_DATA": "where data sets are downloaded to; unset: ~/.cache/fedrebasin",
        "FEDREBASIN_OFFLINE": "set to anything: no data set is downloaded",
    }
    return findings + [Finding(name, value(name) or "not set", OK, meaning) for name, meaning in meanings.items()]
