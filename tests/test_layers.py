"""Data flows one way: simulations -> strategies -> fedrebasin. Read off the imports."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import fedrebasin

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
    return path.relative_to(ROOT).parts[:2] in (("fedrebasin", "cli"), ("fedrebasin", "__main__.py"))


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
            assert starts(module_of(path), "fedrebasin.tracing")
        if starts(name, "matplotlib"):
            assert path.parent.name == "report", "plots are drawn for reports only"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedrebasin" else ("fedrebasin", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
ROOMS = {module for module, path in MODULES.items() if path.name == "__init__.py"}
HOUSES = {"fedrebasin", "fedrebasin.strategies", "fedrebasin.simulations"}


@functools.cache
def offered(room):
    """The names that a room's ``__init__`` binds: a function may be called like the file that it is in."""
    if room not in ROOMS:
        return frozenset()
    body = ast.parse(MODULES[room].read_text()).body
    return frozenset(a.asname or a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_is_entered_by_its_door(path):
    """From outside of a room one imports from its ``__init__``, never from its files."""
    importer = module_of(path)
    for name in imports(path):
        room, _, last = name.rpartition(".")
        if name not in MODULES or name in ROOMS or last in offered(room):
            continue
        assert room in HOUSES or importer == room or importer.startswith(room + "."), f"import {name} from {room}"


def names_used(path):
    """Everything that a file imports, and every attribute that it asks for."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {*imports(path), *(ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute))}


def test_nothing_uses_a_name_that_has_moved():
    """What 0.1 had in ``fedrebasin`` itself is kept there for others; here it is imported from its room."""
    former = {f"fedrebasin.{name}" for name in (*fedrebasin._FORMER_HOMES, *fedrebasin._RENAMED)}
    others = [path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    users = [*FILES, *(path for path in others if "compatibility" not in path.parts)]
    assert {str(path): found for path in users if (found := former & names_used(path))} == {}


def loaded_by(path):
    """The modules that importing a file runs: what it imports outside of functions, submodules by name included."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join((*base, *([node.module] if node.module else [])))
            names = {f"{module}.{alias.name}" for alias in node.names}
            submodules = names & MODULES.keys()
            yield from submodules
            if len(submodules) < len(names) and module != module_of(path):
                yield module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))


#: One recursion in two files: what is tied is cut alike, and the pieces of what is cut are tied.
RECURSION = ("fedrebasin.tracing.algebra.cutting", "fedrebasin.tracing.algebra.tying")


def test_no_circle_among_modules():
    graph = {module: set(loaded_by(path)) & MODULES.keys() for module, path in MODULES.items()}
    graph[RECURSION[0]] -= {RECURSION[1]}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


WITHOUT_FLOWER = ("data", "training", "papers", "report")


@pytest.mark.parametrize("room", WITHOUT_FLOWER)
def test_what_does_not_need_flower_does_not_name_it(room):
    for path in sorted((ROOT / "simulations" / room).rglob("*.py")):
        for name in imports(path):
            assert not starts(name, "flwr", "fedrebasin.strategies"), f"{path.name}: {name}"
            other = name.removeprefix("fedrebasin.simulations.").partition(".")[0]
            if starts(name, "fedrebasin.simulations") and name != "fedrebasin.simulations":
                assert other in (*WITHOUT_FLOWER, "config", "registries") or name not in MODULES, f"{path.name}: {name}"


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


@pytest.mark.parametrize("name", ["", *(f".{room}" for room in WITHOUT_FLOWER)])
def test_what_does_not_need_flower_does_not_load_it(name):
    run(
        f"import fedrebasin.simulations{name}, sys\n"
        "late = {'flwr', 'torchvision', 'sklearn', 'matplotlib', 'ray'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not late, late"
    )


def test_type_checkers_see_the_names_of_simulations():
    """The imports that only they read name what is loaded on demand, from the same rooms."""
    import fedrebasin.simulations as simulations

    body = ast.parse(Path(simulations.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    seen = {alias.name: f"fedrebasin.simulations.{node.module}" for node in block.body for alias in node.names}
    assert seen == simulations._HOMES
    assert set(simulations.__all__) <= set(dir(simulations))
