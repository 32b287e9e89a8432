"""The examples run as written, in this process; the quickstart runs in Flower's engine with the built package."""

import importlib
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from fedrebasin.simulations import run_inline

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKSTART = EXAMPLES / "quickstart"
CONFIG = tomllib.loads((QUICKSTART / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def hunks(file):
    """The lines before and after, for each part of the first diff in a document."""
    (block, *_) = re.findall(r"```diff\n(.*?)```", file.read_text(), re.DOTALL)
    for part in block.split("@@\n"):
        lines = part.splitlines()
        yield (
            [line[1:] for line in lines if not line.startswith("+")],
            [line[1:] for line in lines if not line.startswith("-")],
        )


def patched(text, file, backwards=False):
    """The text with a document's diff applied; every part must be found exactly once."""
    for before, after in hunks(file):
        old, new = ("\n".join(lines) + "\n" for lines in ((after, before) if backwards else (before, after)))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Import the parts of an app in this process, from a copy."""
    names = []

    def load(name, folder, changes=()):
        copy = tmp_path / f"copy-{len(names)}"
        shutil.copytree(folder, copy / name)
        for file, text in changes:
            (copy / name / file).write_text(text)
        monkeypatch.syspath_prepend(str(copy))
        forget()
        names.append(name)
        parts = [importlib.import_module(f"{name}.{part}") for part in ("server_app", "client_app")]
        return [part.app for part in parts]

    def forget():
        for module in [module for module in sys.modules if module.partition(".")[0] in names]:
            del sys.modules[module]
        importlib.invalidate_caches()

    yield load
    forget()


def accuracy(save_path):
    """Of the quickstart's saved model."""
    task = importlib.import_module("quickstart.task")
    net = task.Net()
    net.load_state_dict(torch.load(save_path))
    return task.test(net, task.load_test_data(), "cpu")[1]


def test_the_quickstart_without_its_two_lines_is_fedavg_and_fails_where_they_help(app, tmp_path):
    server = (QUICKSTART / "quickstart" / "server_app.py").read_text()
    plain = patched(server, QUICKSTART / "README.md", backwards=True)
    added = [line.strip() for line in server.splitlines() if line not in plain.splitlines()]
    assert len(added) == len(server.splitlines()) - len(plain.splitlines()) == 4
    assert [line.startswith("# fedrebasin, line ") for line in added] == [True, False, True, False]
    assert "fedrebasin" not in plain
    found = {}
    for name, changes in {"aligned": [], "plain": [("server_app.py", plain)]}.items():
        path = tmp_path / f"{name}.pt"
        run_inline(
            *app("quickstart", QUICKSTART / "quickstart", changes),
            4,
            {**CONFIG, "local-epochs": 10, "save-path": str(path)},
        )
        found[name] = accuracy(path)
    assert found["aligned"] > 0.8
    assert found["plain"] < 0.6


def test_later_rounds_of_the_quickstart_go_on_from_the_global_model(app, tmp_path):
    parts = app("quickstart", QUICKSTART / "quickstart")
    for rounds in (1, 3):
        short = {"num-server-rounds": rounds, "local-epochs": 2, "save-path": str(tmp_path / str(rounds))}
        run_inline(*parts, 4, {**CONFIG, **short})
    assert accuracy(tmp_path / "3") > accuracy(tmp_path / "1")


SERVER = """
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from existing.task import Net

app = ServerApp()


@app.main()
def main(grid, context):
    fraction_evaluate = context.run_config["fraction-evaluate"]
    global_model = Net()
    arrays = ArrayRecord(global_model.state_dict())

    # Initialize FedAvg strategy
    strategy = FedAvg(fraction_evaluate=fraction_evaluate)

    result = strategy.start(grid=grid, initial_arrays=arrays, train_config=ConfigRecord({"lr": 0.1}), num_rounds=2)
    torch.save((type(strategy).__name__, result.arrays.to_torch_state_dict()), context.run_config["save-path"])
"""

TASK = '''
import torch
from torch import nn


class Net(nn.Module):
    """The shapes of Flower's quickstart: images of 3 x 32 x 32, flattened by view before the linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu()).view(-1, 400)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())
'''

CLIENT = """
import torch
from existing.task import Net
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (16,), generator=generator)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    metrics = MetricRecord({"train_loss": 1.0, "num-examples": 16})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg, context):
    return Message(RecordDict({"metrics": MetricRecord({"eval_loss": 1.0, "num-examples": 4})}), reply_to=msg)
"""


def test_the_diff_for_an_existing_app_applies_and_changes_nothing_from_a_shared_start(app, tmp_path):
    source = tmp_path / "existing"
    source.mkdir()
    for file, text in {"__init__.py": "", "task.py": TASK, "client_app.py": CLIENT, "server_app.py": SERVER}.items():
        (source / file).write_text(text)
    found = []
    for changes in ([], [("server_app.py", patched(SERVER, EXAMPLES / "existing-app.md"))]):
        path = tmp_path / f"{len(found)}.pt"
        run_inline(*app("existing", source, changes), 2, {"fraction-evaluate": 0.5, "save-path": str(path)})
        found.append(torch.load(path))
    (plain, before), (aligned, after) = found
    assert (plain, aligned) == ("FedAvg", "FedRebasin")
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
