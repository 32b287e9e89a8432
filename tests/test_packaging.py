"""The wheel installs one package, with strategies and simulations inside of it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("fedrebasin", "strategies", "simulations", "pyproject.toml", "README.md", "LICENSE")


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
    assert names == expected


def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import fedrebasin, fedrebasin.strategies, fedrebasin.simulations, sys;"
        f"assert fedrebasin.strategies.__file__.startswith({str(tmp_path)!r});"
        "assert 'strategies' not in sys.modules; print(fedrebasin.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.strip() == version
