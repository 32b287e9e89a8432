"""The oldest and the newest Flower and Python that are supported, each in an environment of its own.

    python tests/package/matrix.py [NAME ...]

A Python that is not on this machine is skipped with a line that says so. The environments stay in build/matrix, so that
a second run only brings them up to date.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What is closest to Flower: messages, strategies, the grid of this process, the example app.
TESTS = (
    "tests/strategies/test_aligned.py",
    "tests/strategies/test_calibrators.py",
    "tests/simulations/test_inline.py",
    "tests/simulations/test_server_app.py",
    "tests/test_examples.py",
    "tests/test_permutation.py",
)


@dataclass(frozen=True)
class Environment:
    """One column of the matrix.

    Args:
        name: of its folder.
        python: the version, such as ``3.11``.
        flower: what pip is asked for.
    """

    name: str
    python: str
    flower: str

    @property
    def interpreter(self) -> str | None:
        """A Python of this version on this machine."""
        command = f"python{self.python}"
        candidates = [
            shutil.which(command),
            *sorted(Path.home().glob(f".pyenv/versions/{self.python}.*/bin/{command}")),
        ]
        for candidate in filter(None, candidates):
            done = subprocess.run([str(candidate), "--version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and f" {self.python}." in done.stdout:
                return str(candidate)
        return None

    def run(self) -> bool:
        """Set it up and test in it; whether all tests passed."""
        folder = ROOT / "build" / "matrix" / self.name
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([str(self.interpreter), "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--editable", ".[dev]", self.flower]
        if subprocess.run(pip, cwd=ROOT, check=False).returncode:
            return False
        tests = [str(python), "-m", "pytest", "-q", "-m", "not engine and not package and not cuda", *TESTS]
        return subprocess.run(tests, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode == 0


MATRIX = (
    Environment("oldest", "3.11", "flwr[simulation]==1.29.0"),
    Environment("newest-flower", "3.12", "flwr[simulation]<2"),
    Environment("newest", "3.13", "flwr[simulation]<2"),
)


def main() -> int:
    """Run what was asked for; 1 if a test failed anywhere."""
    results = {}
    for one in MATRIX:
        if sys.argv[1:] and one.name not in sys.argv[1:]:
            continue
        if one.interpreter is None:
            results[one.name] = f"skipped: there is no Python {one.python} on this machine"
        else:
            results[one.name] = "passed" if one.run() else "FAILED"
    for one in MATRIX:
        if one.name in results:
            print(f"{one.name}: Python {one.python}, {one.flower}: {results[one.name]}")
    return int("FAILED" in results.values())


if __name__ == "__main__":
    sys.exit(main())
