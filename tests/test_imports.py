"""What an import loads, and what it leaves for later."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedrebasin
from tests.cli.test_command import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "numpy", "scipy", "flwr")
LATE = ("torchvision", "sklearn", "matplotlib", "ray", "scipy.optimize")


def loaded(code):
    """The modules that are there after a line of Python in a new process."""
    code = f"import sys\n{code}\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.rpartition("loaded ")[2].split())


COMMAND = "import fedrebasin.cli; fedrebasin.cli.main({})"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        pytest.param("import fedrebasin", HEAVY, id="fedrebasin"),
        pytest.param("from fedrebasin import RebasinError", HEAVY, id="an error"),
        pytest.param("from fedrebasin import PermutationSpec, WeightMatching, loss_barrier", LATE, id="names"),
        pytest.param("import fedrebasin.strategies", LATE, id="strategies"),
        pytest.param(COMMAND.format(["--version"]), HEAVY, id="--version"),
        pytest.param(COMMAND.format(["--help"]), HEAVY, id="--help"),
        *(pytest.param(COMMAND.format([name, "--help"]), HEAVY, id=f"{name} --help") for name in COMMANDS),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, absent):
    assert loaded(code).isdisjoint(absent)


def test_type_checkers_see_the_names_that_there_are():
    """The imports that only they read name what is loaded on demand, from the same rooms."""
    (block,) = (
        node
        for node in ast.parse(Path(fedrebasin.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.asname == alias.name}
    assert seen == {name: fedrebasin._HOMES[name] for name in fedrebasin.__all__}
    assert set(fedrebasin.__all__) <= set(dir(fedrebasin))
