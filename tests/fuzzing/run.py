"""Fuzz all targets for long: each in a process of its own, whose end, however it comes, is a finding.

    python tests/fuzzing/run.py --minutes 60 [--target replies ...] [--seed 0] [--keep FOLDER]

Prints a row for each target; inputs with findings are kept in FOLDER, and belong into ``tests/fuzzing/corpus/NAME``
once what they found is mended. The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[0] = str(ROOT)  # and not this folder

NAMES = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py") if path.stem != "test_engine")
SLICE = 240.0  # seconds of a process: the next one begins with another seed, and with less in memory


def work(name: str, seed: int, seconds: float, last: Path) -> None:
    """Fuzz one target in this process, and print what was seen."""
    from tests.fuzzing.engine import fuzz

    folder = last.parent / "files"
    folder.mkdir()
    target = importlib.import_module(f"tests.fuzzing.test_{name}").target_in(folder)
    end = time.monotonic() + seconds
    report = fuzz(target, seed, lambda _: time.monotonic() < end, last.write_bytes)
    findings = {what: data.hex() for what, data in report.findings.items()}
    seen = {"outcomes": report.outcomes, "slowest": report.slowest, "findings": findings, "memory": peak() / 2**20}
    print(json.dumps(seen))


def peak() -> float:
    """The most bytes that this process has held at a time; 0 where the operating system does not say."""
    if resource is None:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def looked_at(name: str, seed: int, seconds: float, keep: Path) -> dict[str, Any]:
    """What a process saw."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        command = [sys.executable, __file__, "--work", name, str(seed), str(seconds), str(last)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            what = f"ended with {done.returncode}: {(done.stderr.splitlines() or [''])[-1][:200]}"
            data = last.read_bytes() if last.exists() else b""
            seen = {"outcomes": {}, "slowest": seconds, "findings": {what: data.hex()}, "memory": 0.0}
        else:
            seen = json.loads(done.stdout.splitlines()[-1])
    for number, (what, data) in enumerate(seen["findings"].items()):
        print(f"{name}, seed {seed}: {what}", flush=True)
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}-{seed}-{number}").write_bytes(bytes.fromhex(data))
    return dict(seen)


def main() -> int:
    """Fuzz in turn what was asked for; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all targets together")
    parser.add_argument("--target", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seed", type=int, default=0, help="of the first process of each target")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "fuzzing", help="for inputs with findings")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, seed, seconds, last = arguments.work
        work(name, int(seed), float(seconds), Path(last))
        return 0
    totals: dict[str, dict[str, Any]] = {name: {"cases": 0, "accepted": 0, "kinds": set()} for name in arguments.target}
    found: dict[str, set[str]] = {name: set() for name in arguments.target}
    slowest, memory = dict.fromkeys(arguments.target, 0.0), dict.fromkeys(arguments.target, 0.0)
    rounds = max(1, round(arguments.minutes * 60 / SLICE / len(arguments.target)))
    seconds = arguments.minutes * 60 / rounds / len(arguments.target)
    for seed in range(arguments.seed, arguments.seed + rounds):
        for name in arguments.target:
            seen = looked_at(name, seed, seconds, arguments.keep)
            totals[name]["cases"] += sum(seen["outcomes"].values())
            totals[name]["accepted"] += seen["outcomes"].get("accepted", 0)
            totals[name]["kinds"] |= seen["outcomes"].keys()
            found[name] |= seen["findings"].keys()
            print(f"{name}, seed {seed}: {totals[name]['cases']} inputs so far", flush=True)
            slowest[name], memory[name] = max(slowest[name], seen["slowest"]), max(memory[name], seen["memory"])
    print("| target | inputs | accepted | kinds of refusal | slowest | most memory | findings |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, total in totals.items():
        kinds, findings = len(total["kinds"] - {"accepted"}), len(found[name])
        most = f"{slowest[name]:.1f} s | {memory[name]:.0f} MB"
        print(f"| {name} | {total['cases']} | {total['accepted']} | {kinds} | {most} | {findings} |")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
