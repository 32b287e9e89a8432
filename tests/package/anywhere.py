"""The tests on other processors, threads, orders, Pythons and versions: the promised range is the tested one.

    python tests/package/anywhere.py [ROW ...] [-- PYTEST ARGUMENT ...]

Every row is an environment of its own in build/anywhere, kept, so that a second run only brings it up to date. All but
the oldest hold the optional packages, and there a skip is a failure. A Python that is missing here fails its row.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
UV = Path(sysconfig.get_path("scripts")) / "uv"
#: What some tests need beside the package; pip finds for each Python the newest that there is.
OPTIONAL = ("transformers", "timm", "peft", "lightning", "keras", "jax", "flax", "tensorboard", "pandas")
SELECTED = "not cuda and not network and not browser and not package and not deploy"
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@dataclass(frozen=True)
class Row:
    """One environment and one run of the tests.

    Args:
        python: the version, such as ``3.11``.
        oldest: the lowest versions that pyproject.toml promises instead of the newest, and nothing optional.
        processor: what it pretends to be, as environment variables.
        threads: of each test process; as many processes as the cores allow.
        shuffled: the tests in a random order, whose seed is printed.
    """

    python: str
    oldest: bool = False
    processor: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    shuffled: bool = False

    def run(self, name: str, arguments: Sequence[str]) -> str:
        """Set it up and test in it; what became of it, in a line."""
        folder = ROOT / "build" / "anywhere" / name
        python = folder / "bin" / "python"
        if not python.exists():
            if (interpreter := find_python(self.python)) is None:
                return f"FAILED: there is no Python {self.python} on this machine"
            subprocess.run([UV, "venv", "--quiet", "--seed", "--clear", "--python", interpreter, folder], check=True)
        wanted = lowest() if self.oldest else ["--upgrade", *OPTIONAL]
        extras = "dev" if self.oldest else "dev,docs,datasets"
        install = [UV, "pip", "install", "--quiet", "--python", python, "--editable", f".[{extras}]", *wanted]
        if subprocess.run(install, cwd=ROOT, check=False).returncode:
            return "FAILED: not installed, see above"
        workers = max(1, (os.cpu_count() or 1) // self.threads)
        tests = [python, "-m", "pytest", "-q", "-m", SELECTED, "-n", str(workers), "--dist", "worksteal", *arguments]
        failed = subprocess.run(tests, cwd=ROOT, env={**os.environ, **self.settings}, check=False).returncode
        return "FAILED" if failed else "passed"

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables of the run; ``tests/conftest.py`` reads the last two."""
        found = {**self.processor, "OMP_NUM_THREADS": str(self.threads)}
        if self.shuffled:
            found["FEDREBASIN_TEST_ORDER"] = os.environ.get("FEDREBASIN_TEST_ORDER") or str(random.randrange(10**6))
        return found if self.oldest else {**found, "FEDREBASIN_ALL_EXTRAS": "1"}

    def __str__(self) -> str:
        versions = "oldest" if self.oldest else "newest"
        order = ", random order" if self.shuffled else ""
        processor = self.processor.get("ATEN_CPU_CAPABILITY", "as it is")
        return f"Python {self.python}, {versions} versions, processor {processor}, {self.threads} thread(s){order}"


ROWS = {
    "oldest": Row("3.11", oldest=True, processor=PLAIN),
    "avx2": Row("3.11", processor=AVX2, shuffled=True),
    "plain": Row("3.12", processor=PLAIN, threads=2),
    "newest": Row("3.13", threads=2, shuffled=True),
}


def lowest() -> list[str]:
    """The lower bounds of pyproject.toml as the versions to install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.sub(r">=([\w.]+).*", r"==\1", requirement) for requirement in project["dependencies"]]


def find_python(version: str) -> str | None:
    """A Python of this version on this machine, on the path or among pyenv's."""
    done = subprocess.run([UV, "python", "find", "--no-project", version], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    return str(found[-1]) if found else None


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; 1 if anything failed anywhere."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    names, passed_on = arguments[:at] or list(ROWS), arguments[at + 1 :]
    if unknown := set(names) - set(ROWS):
        print(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
        return 2
    results = {}
    for name in names:
        print(f"== {name}: {ROWS[name]}", flush=True)
        results[name] = ROWS[name].run(name, passed_on)
    for name, result in results.items():
        print(f"{name}: {ROWS[name]}: {result}")
    return int(any(result != "passed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
