"""The code in docs/ runs page by page as written, its commands exist, and the site has every page and public name."""

import importlib.util
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fedrebasin
from fedrebasin import simulations
from fedrebasin.cli import main
from fedrebasin.registry import ALIGNERS, MATCHERS, MODELS, STATISTICS
from fedrebasin.simulations import CALIBRATORS, EXPERIMENTS, LOADERS, STRATEGIES

REGISTRIES = (ALIGNERS, CALIBRATORS, EXPERIMENTS, LOADERS, MATCHERS, MODELS, STATISTICS, STRATEGIES)
#: What a block that imports it is left out without.
OPTIONAL = ("flax", "jax", "keras", "lightning", "pandas", "peft", "transformers")
ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CONTRIBUTING = (ROOT / "docs" / "contributing.md").read_text()


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                command = line.partition("#")[0].strip()
                if command.startswith("fedrebasin "):
                    yield pytest.param(command, id=f"{page.stem}: {command}")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_its_beginning_to_its_end(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:  # what a page registers, the next one does not know
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    torch.manual_seed(0)
    namespace = {}
    missing = set()
    for number, block in enumerate(blocks(page, "python")):
        imported = {name for name in OPTIONAL if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)}
        if absent := {name for name in imported if not find_spec(name)}:
            missing |= absent
        else:
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}; all other blocks run")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_and_their_options_exist(command, capsys, monkeypatch):
    """What they do is tested elsewhere; whether a page names an option that is none is seen here."""
    monkeypatch.setenv("COLUMNS", "300")
    _, name, *arguments = shlex.split(command)
    assert main([name, "--help"]) == 0
    offered = capsys.readouterr().out
    assert [option for option in arguments if option.startswith("--") and option not in offered] == []


def test_the_contributing_page_names_targets_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", CONTRIBUTING))
    assert named <= targets


def test_the_contributing_page_names_every_room_and_nothing_that_is_not_there():
    named = set(re.findall(r"`((?:fedrebasin|strategies|simulations|tests|benchmarks)/[^`]*)`", CONTRIBUTING))
    assert {path for path in named if not (ROOT / path).exists()} == set()
    rooms = [
        file.parent for top in ("fedrebasin", "strategies", "simulations") for file in (ROOT / top).rglob("__init__.py")
    ]
    assert {f"{room.relative_to(ROOT)}/" for room in rooms} <= named


def test_a_replys_way_is_short():
    way = CONTRIBUTING.partition("## A reply's way")[2].partition("\n## ")[0]
    files = re.findall(r"`(\S+\.py)`", way)
    assert len(files) == len(set(files)) <= 8


def test_every_row_on_apps_names_a_test_that_there_is_and_every_app_has_a_row():
    page = (ROOT / "docs" / "your-app.md").read_text()
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)[2:]
    assert len(rows) >= 19
    named = [pair for _, _, shown in rows for pair in re.findall(r"`([a-z]+/\w+)(?:::(\w+))?`", shown)]
    assert all(re.search(r"`[a-z]+/test_\w+", shown) for _, _, shown in rows)
    for file, test in named:
        assert f"def {test or 'test_'}" in (ROOT / "tests" / f"{file}.py").read_text(), (file, test)
    apps = {f"flower/{path.stem}" for path in (ROOT / "tests" / "flower").glob("test_*.py")}
    assert apps <= {file for file, _ in named}


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text()
    outside = [ROOT / path for path in re.findall(r'"([^"*]+\.md)"', (ROOT / "docs" / "hooks.py").read_text())]
    assert len(outside) == 4
    outside += (ROOT / "benchmarks" / "results").glob("*.md")
    for page in (*PAGES, *outside):
        inside = page.relative_to(ROOT / "docs") if page in PAGES else page.relative_to(ROOT)
        assert f": {inside.as_posix()}" in navigation, f"{inside} is not in mkdocs.yml"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text()):
            assert re.match(r"[a-z]+:", target) or (page.parent / target).exists(), f"{inside}: {target}"


def hooks_of_the_site():
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def test_every_public_name_is_on_one_page_of_the_api():
    hooks = hooks_of_the_site()
    listed = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for found in hooks.NAMES.finditer(page.read_text())
        for name in hooks.names(found["package"], found["wanted"])
    ]
    assert len(listed) == len(set(listed))
    for name in listed:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
    public = {f"{home}.{name}" for name, home in {**fedrebasin._HOMES, **fedrebasin._FORMER_HOMES}.items()}
    for package in ("fedrebasin.strategies", "fedrebasin.simulations"):
        public |= set(hooks.names(package, None))
    assert public <= set(listed)


@pytest.mark.parametrize("registry", ["BASES", "CALIBRATORS"])
def test_the_site_lists_what_is_registered_with_a_line_each(registry):
    hooks = hooks_of_the_site()
    assert f"<!-- registered in fedrebasin.simulations: {registry} -->" in (ROOT / "docs" / "choosing.md").read_text()
    listed = hooks.registered("fedrebasin.simulations", registry).splitlines()
    names = list(getattr(simulations, registry))
    assert [line.partition(": ")[0] for line in listed] == [f"- `{name}`" for name in names]
    assert all(line.partition(": ")[2].endswith(".") for line in listed)


def test_the_page_on_extending_names_every_registry_and_files_that_there_are():
    page = (ROOT / "docs" / "extending.md").read_text()
    offered = tomllib.loads("\n".join(blocks(ROOT / "docs" / "extending.md", "toml")))["project"]["entry-points"]
    assert set(offered) == {registry.group for registry in REGISTRIES}
    rows = re.findall(r"^\| ([a-z -]+) \| (.+) \|$", page.partition("## As a part")[2], re.MULTILINE)[2:]
    assert len(rows) == 10
    for _, files in rows:
        named = re.findall(r"`([^`]+/[^`]*|pyproject.toml)`", files)
        assert named
        assert len(named) + files.count("`__init__.py`") <= 3
        assert [file for file in named if not (ROOT / file).exists()] == []
