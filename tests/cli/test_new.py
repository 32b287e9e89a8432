"""``fedrebasin new``: the copied app runs as it is, in this process and by ``flwr run``."""

import importlib
import json
import sys
import tomllib
from importlib import metadata

import pytest
import torch

import fedrebasin
from fedrebasin.cli import main
from fedrebasin.cli.new import DEPENDENCY, IN_THE_REPOSITORY, installed_from
from fedrebasin.simulations import run_inline


def make(folder, *options):
    assert main(["new", str(folder), *options]) == 0
    return tomllib.loads((folder / "pyproject.toml").read_text())


def test_the_app_runs_two_rounds_as_it_is(tmp_path, monkeypatch, capsys):
    app = tmp_path / "my app"
    project = make(app)
    assert f"flwr run '{app}' --stream" in capsys.readouterr().out
    monkeypatch.syspath_prepend(str(app))
    monkeypatch.setitem(sys.modules, "quickstart", importlib.import_module("quickstart"))
    parts = [importlib.import_module(f"quickstart.{name}") for name in ("server_app", "client_app")]
    try:
        save_path = tmp_path / "final.pt"
        chosen = {"num-server-rounds": 2, "local-epochs": 2, "save-path": str(save_path)}
        run_inline(*(part.app for part in parts), 4, {**project["tool"]["flwr"]["app"]["config"], **chosen})
    finally:
        for name in [name for name in sys.modules if name.startswith("quickstart.")]:
            del sys.modules[name]
    assert set(torch.load(save_path)) == {f"fc{number}.{kind}" for number in (1, 2, 3) for kind in ("weight", "bias")}


@pytest.mark.engine
def test_flwr_run_runs_the_app(flower, tmp_path):
    make(tmp_path / "app")
    chosen = f"num-server-rounds=2 local-epochs=2 num-clients=2 save-path='{tmp_path / 'final.pt'}'"
    nodes = ("--federation-config", "num-supernodes=2")
    done = flower("run", str(tmp_path / "app"), "--stream", *nodes, "-c", chosen)
    runs = json.loads(flower("list", "--format", "json").stdout)["runs"]
    assert [run["status"] for run in runs] == ["finished:completed"], done.stdout + done.stderr
    assert "rebasin-similarity" in done.stdout
    assert (tmp_path / "final.pt").stat().st_size > 10_000


def test_the_two_lines_are_marked_each_by_the_comment_above_it(tmp_path):
    make(tmp_path / "app")
    lines = (tmp_path / "app" / "quickstart" / "server_app.py").read_text().splitlines()
    marks = [place for place, line in enumerate(lines) if line.strip().startswith("# fedrebasin, line")]
    assert [("strategies" in lines[place + 1]) for place in marks] == [True, True]
    assert sum("PermutationSpec" in line for line in lines) == len(marks) == 2


def test_the_readme_is_of_an_app_and_not_of_the_repository(tmp_path):
    make(tmp_path / "app")
    readme = (tmp_path / "app" / "README.md").read_text()
    assert "examples/" not in readme
    assert "pip install" not in readme


def test_it_installs_this_version_from_where_this_one_came(tmp_path, monkeypatch):
    origin = tmp_path / "fedrebasin on a disk.whl"
    origin.touch()

    class Installed:
        """What pip writes down of a wheel that it was given."""

        def read_text(self, name):
            return json.dumps({"url": origin.as_uri(), "archive_info": {}}) if name == "direct_url.json" else None

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    project = make(tmp_path / "a")
    assert f"fedrebasin=={fedrebasin.__version__}" in project["project"]["dependencies"]
    assert project["tool"]["uv"]["sources"] == {"fedrebasin": {"path": str(origin)}}
    other = tmp_path / 'an "other".whl'
    other.touch()
    assert make(tmp_path / "b", "--wheel", str(other))["tool"]["uv"]["sources"]["fedrebasin"]["path"] == str(other)
    origin.unlink()
    assert installed_from() is None
    assert "uv" not in make(tmp_path / "c")["tool"]


@pytest.mark.parametrize("written", [None, "{}", "no JSON", '{"url": "https://example.com/fedrebasin.whl"}'])
def test_an_origin_that_is_no_file_is_left_out(written, monkeypatch):
    installed = type("Installed", (), {"read_text": lambda self, name: written})
    monkeypatch.setattr(metadata, "distribution", lambda name: installed())
    assert installed_from() is None


def test_without_an_installation_there_is_no_origin(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert installed_from() is None


def test_an_empty_folder_is_taken_and_anything_else_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    before = {path: path.read_bytes() for path in (tmp_path / "empty").rglob("*") if path.is_file()}
    (tmp_path / "file").touch()
    for name in ("empty", "file"):
        assert main(["new", str(tmp_path / name)]) == 2
        assert "is not an empty folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "empty").rglob("*") if path.is_file()}
    assert main(["new", str(tmp_path / "other"), "--wheel", str(tmp_path / "none.whl")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_is_filled_in_is_in_the_quickstart():
    """Where it is not, the copy would silently be the quickstart itself."""
    from fedrebasin.cli.new import _template

    assert (_template() / "pyproject.toml").read_text().count(DEPENDENCY) == 1
    assert (_template() / "README.md").read_text().count(IN_THE_REPOSITORY) == 1
