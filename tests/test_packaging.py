"""The wheel installs one package, with strategies and simulations inside of it."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedrebasin import __version__
from fedrebasin.cli.doctor import TESTED
from tests.package.anywhere import ROWS

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("fedrebasin", "strategies", "simulations", "examples", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / part)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_every_module_is_in_the_wheel_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"fedrebasin/py.typed"}
    for folder in ("fedrebasin", "strategies", "simulations"):
        for path in (*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.html")):
            inside = path.relative_to(ROOT).as_posix()
            expected.add(inside if folder == "fedrebasin" else f"fedrebasin/{inside}")
    quickstart = ROOT / "examples" / "quickstart"
    files = [quickstart / "README.md", quickstart / "pyproject.toml", *quickstart.glob("quickstart/*.py")]
    expected |= {f"fedrebasin/quickstart/{path.relative_to(quickstart).as_posix()}" for path in files}
    assert names == expected


def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import fedrebasin, fedrebasin.strategies, fedrebasin.simulations, sys;"
        f"assert fedrebasin.strategies.__file__.startswith({str(tmp_path)!r});"
        "assert 'strategies' not in sys.modules; from fedrebasin.cli import main; assert main(['new', 'app']) == 0;"
        "print(fedrebasin.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.splitlines()[-1] == version
    assert (tmp_path / "app" / "quickstart" / "server_app.py").is_file()


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__


def test_what_is_promised_is_what_is_tested():
    """Pythons: the rows of ``make test-anywhere``; torch and flwr: from the lower bound to the newest tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = sorted({row.python for row in ROWS.values()})
    named = re.findall(r"Python :: (3\.[0-9]+)", " ".join(project["classifiers"]))
    assert named == pythons
    assert project["requires-python"] == f">={pythons[0]},<3.{int(pythons[-1].split('.')[1]) + 1}"
    oldest = dict(re.findall(r"^(torch|flwr)(?:\[\w+\])?>=([0-9.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    said = [f"{name} {oldest[name]} to {newest}" for name, newest in TESTED.items()]
    for page in ("README.md", "docs/index.md"):
        assert ", ".join([f"Linux, Python {pythons[0]} to {pythons[-1]}", *said]) in (ROOT / page).read_text()


def test_one_version_of_ruff_everywhere():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    (pinned,) = [requirement for requirement in extra if requirement.startswith("ruff")]
    assert re.fullmatch(r"ruff==[0-9.]+", pinned)
    hooks = re.findall(r"ruff==[0-9.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert set(hooks) == {pinned}


def test_the_workflow_runs_targets_that_there_are():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"run: make ([a-z-]+)", (ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert set(used) == {"test", "lint", "test-browser", "test-package", "test-anywhere", "docs"}
    assert set(used) <= set(targets)
