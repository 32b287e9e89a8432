"""Wheel and sdist as a user gets them: built and checked, installed in an environment of their own, tried elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package
ROOT = Path(__file__).parents[2]


def run(*command, cwd, **options):
    """What a command prints; its whole output is shown where it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(folder, *packages):
    """A new virtual environment with packages; its folder of commands."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def tools(place):
    return environment(place / "tools", "build", "twine")


@pytest.fixture(scope="module")
def dist(place, tools):
    """Built from a copy without what lies about in a checkout."""
    source = place / "source"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(tools / "python", "-m", "build", "--outdir", place / "dist", source, cwd=place)
    return place / "dist"


@pytest.fixture(scope="module")
def clean(place, dist):
    """The commands of an environment that has the wheel and what it asks for, nothing else."""
    (wheel,) = dist.glob("*.whl")
    return environment(place / "clean", wheel)


@pytest.fixture
def empty(tmp_path, clean):
    """Run a command of the clean environment in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return lambda name, *arguments: run(clean / name, *arguments, cwd=folder), folder


def test_the_metadata_is_in_order(tools, dist):
    run(tools / "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "strategies/aligned.py",
        "simulations/config.py",
    } <= names
    (wheel,) = dist.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert sorted(top.partition("-")[0] for top in tops) == ["fedrebasin", "fedrebasin"]


def test_the_clean_environment_is_consistent(empty):
    command, _ = empty
    assert "No broken requirements" in command("python", "-m", "pip", "check")


def test_the_command_works(empty):
    command, folder = empty
    assert command("fedrebasin", "--version").startswith("fedrebasin 0.")
    quick = ["--width", "16", "--local-epochs", "2", "--seeds", "0,1", "--strategies", "fedavg,rebasin"]
    assert "rebasin" in command("fedrebasin", "compare", *quick, "--out", "out")
    results = json.loads((folder / "out" / "results.json").read_text())
    assert len(results["comparisons"]) == 2
    assert "<svg" in (folder / "out" / "report.html").read_text()
    assert "groups" in command("fedrebasin", "spec", "--model", "torchvision:resnet18")
    assert "error" not in command("fedrebasin", "doctor").lower()


def test_the_snippets_of_the_readme_run(empty):
    command, folder = empty
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "snippets.py").write_text("\n".join(code))
    command("python", "snippets.py")


def test_the_quickstart_runs_by_flwr_run(clean, dist, flower, tmp_path):
    run(clean / "fedrebasin", "new", tmp_path / "quickstart", cwd=tmp_path)
    (wheel,) = dist.glob("*.whl")
    assert str(wheel) in (tmp_path / "quickstart" / "pyproject.toml").read_text()
    run_flwr = flower.of(clean)
    overrides = f"local-epochs=2 num-clients=2 save-path='{tmp_path / 'final.pt'}'"
    done = run_flwr(
        "run", str(tmp_path / "quickstart"), "--stream", "--federation-config", "num-supernodes=2", "-c", overrides
    )
    listed = run_flwr("list", "--format", "json").stdout
    assert [one["status"] for one in json.loads(listed).get("runs", [])] == ["finished:completed"], done
    assert "rebasin-similarity" in done.stdout
    assert (tmp_path / "final.pt").stat().st_size > 10_000
