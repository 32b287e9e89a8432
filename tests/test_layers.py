"""Data flows one way: simulations -> strategies -> fedrebasin. Read off the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fedrebasin", "strategies", "simulations")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    """Absolute names of everything that a file imports, at any depth."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    package = package if package[0] == "fedrebasin" else ("fedrebasin", *package)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(path):
    return path.relative_to(ROOT).parts[0]


def is_command(path):
    return path.relative_to(ROOT).parts[:2] == ("fedrebasin", "cli")


def starts(name, *prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    for name in imports(path):
        assert not starts(name, "strategies", "simulations"), "import it as fedrebasin.…"
        if layer(path) == "fedrebasin" and not is_command(path):
            assert not starts(name, "flwr", "fedrebasin.strategies", "fedrebasin.simulations", "fedrebasin.cli"), name
        if layer(path) == "strategies":
            assert not starts(name, "fedrebasin.simulations", "fedrebasin.cli"), name
        if name.startswith("scipy.optimize"):
            assert path.name == "assignment.py"
        if name.startswith("torch.export"):
            assert path.parent.name == "tracing"
        if starts(name, "matplotlib"):
            assert path.stem == "charts" or path.stem.startswith("report"), "plots are drawn for reports only"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_imported_from_the_package(path):
    """From outside of the library's folder one imports names, never their submodules."""
    if layer(path) == "fedrebasin":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and starts(node.module, "fedrebasin"):
            allowed = ("fedrebasin", "fedrebasin.strategies", "fedrebasin.simulations", "fedrebasin.models")
            assert node.module in allowed, node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_passes_three_hundred_lines(path):
    assert len(path.read_text().splitlines()) <= 300


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_library_does_not_load_flower():
    run(
        "import fedrebasin, sys;assert not {m for m in sys.modules if m.split('.')[0] in ('flwr', 'ray', 'matplotlib')}"
    )


def test_no_generic_name_lands_on_the_import_path():
    run(
        "import fedrebasin.strategies, fedrebasin.simulations, sys;"
        "assert 'strategies' not in sys.modules and 'simulations' not in sys.modules"
    )


def test_every_public_name_is_there():
    run(
        "import fedrebasin as f, fedrebasin.strategies as s, fedrebasin.simulations as m\n"
        "for p in (f, s, m):\n"
        "    assert all(hasattr(p, name) for name in p.__all__), p\n"
        "    assert len(set(p.__all__)) == len(p.__all__)\n"
    )
