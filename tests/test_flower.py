"""What is used of Flower is there in the installed version: documented names everywhere, others in one file only.

``make test-anywhere`` runs this with the oldest and the newest Flower that are promised.
"""

import ast
import importlib
import logging
import subprocess
import sys

import flwr.app
import flwr.server
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedYogi

from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import flower
from tests.test_layers import FILES, ROOT

#: The modules whose names Flower documents for apps.
DOCUMENTED = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation"}
THE_FILE = ROOT / "strategies" / "flower.py"


def used_of_flower(path):
    """Pairs of module and name, those in strings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "flwr")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((one.value, "") for one in node.args if str(getattr(one, "value", "")).startswith("flwr"))


USED = sorted({pair for path in FILES for pair in used_of_flower(path)})
BESIDE = sorted({pair for path in FILES if path != THE_FILE for pair in used_of_flower(path)})


@pytest.mark.parametrize(("module", "name"), BESIDE)
def test_documented_names_only_but_in_one_file(module, name):
    assert module in DOCUMENTED
    assert name
    assert not name.startswith("_")


@pytest.mark.parametrize(("module", "name"), [pair for pair in USED if pair[1]])
def test_what_is_imported_is_there(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reaches_into_frames_closures_or_private_attributes(path):
    """Of other objects than one's own; what the one file reaches into is tried below."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and path != THE_FILE:
            assert node.attr not in {"_getframe", "currentframe", "__closure__", "co_freevars", "cell_contents"}
        if isinstance(node, ast.Subscript) and path != THE_FILE:
            assert not ast.unparse(node.value).endswith("__dict__")


def test_the_log_is_flowers():
    assert flower.log == importlib.import_module("flwr.common").log
    assert flower.log.__self__ is logging.getLogger("flwr")


def test_fed_opt_is_what_flowers_optimizers_are_made_of():
    for kind in (FedAdagrad, FedAdam, FedYogi):
        assert flower.FedOpt in kind.__mro__
    assert flower.FedOpt not in FedAvg.__mro__


def test_the_code_of_a_client_that_raised_is_flowers():
    constant = importlib.import_module("flwr.common.constant")
    assert constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION == flower.CLIENT_RAISED


def test_former_strategies_are_told_from_todays():
    former = importlib.import_module("flwr.server.strategy")
    kinds = [kind for name in dir(former) if isinstance(kind := getattr(former, name), type)]
    assert len(kinds) > 10
    assert all(kind.__module__.startswith(flower._LEGACY) for kind in kinds)
    assert flwr.server.ServerAppComponents.__module__.startswith(flower._LEGACY)
    today = importlib.import_module("flwr.serverapp.strategy")
    assert not any(getattr(today, name).__module__.startswith(flower._LEGACY) for name in today.__all__)


def test_a_process_outside_a_run_can_make_messages():
    code = (
        "from fedrebasin.strategies.flower import enter_task; enter_task(1)\n"
        "from flwr.app import Message, RecordDict; Message(RecordDict(), 1, 'train')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ids_and_metadata_are_where_flower_reads_them():
    flower.enter_task(1)
    asked, other = (Message(RecordDict(), node, "train") for node in (1, 2))
    flower.name_message(asked, "17")
    assert asked.metadata.message_id == "17"
    assert Message(RecordDict(), reply_to=asked).metadata.reply_to_message_id == "17"
    delivered = flower.deliver(other, asked.metadata)
    assert delivered is other
    assert delivered.metadata is asked.metadata
    assert Message(RecordDict(), reply_to=delivered).metadata.src_node_id == 1


def test_the_grid_in_this_process_is_a_whole_one():
    """Every abstract method of the installed Flower's Grid has a body."""
    assert not InlineGrid.__abstractmethods__
