"""What 0.1.0 wrote is read: specs, results, checkpoints, trained models, requests for sums, options and keys.

The files are those of ``write.py``, run with 0.1.0.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from fedrebasin.simulations.papers.lab import Lab
from fedrebasin.simulations.papers.recipe import Recipe
from fedrebasin.strategies.sums.encoding import describe_statistic, read_statistic
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvgM
from safetensors.torch import load_file

from fedrebasin import PermutationSpec, collect_sums
from fedrebasin.cli import main
from fedrebasin.cli.app import app
from fedrebasin.files import load_checkpoint
from fedrebasin.registry import STATISTICS
from fedrebasin.simulations import InlineGrid, SimulationConfig, read_results
from fedrebasin.strategies import FedRebasin
from tests.compatibility.nets import CLIENTS, TRACED, batches, clients, mlp, random_state

FILES = Path(__file__).parent / "written_by_0_1"
SETTINGS = json.loads((FILES / "settings.json").read_text())
OPTIONS = json.loads((FILES / "options.json").read_text())
APP = json.loads((FILES / "flower-app.json").read_text())


@pytest.mark.parametrize("name", TRACED)
def test_specs(name, tmp_path):
    make, shape = TRACED[name]
    spec = PermutationSpec.load(FILES / f"{name}.json")
    spec.check(make(), torch.zeros(shape))
    assert spec.log10_symmetries == pytest.approx(PermutationSpec.trace(make(), torch.zeros(shape)).log10_symmetries)
    spec.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((FILES / f"{name}.json").read_text())


def test_results(tmp_path, capsys):
    written = json.loads((FILES / "results" / "results.json").read_text())
    (comparison,) = read_results(FILES / "results").comparisons
    assert comparison.strategies == ("fedavg", "rebasin+temperature")
    assert main(["compare", "--from", str(FILES / "results"), "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"] == written["comparisons"]
    assert "rebasin+temperature" in (tmp_path / "out" / "report.html").read_text()


def test_a_comparison_that_is_there_is_not_run_again(tmp_path):
    written = json.loads((FILES / "results" / "results.json").read_text())
    shutil.copytree(FILES / "results", tmp_path / "results")
    command = written["command"].split()[1:-2]
    assert main([*command, "--out", str(tmp_path / "results")]) == 0
    assert json.loads((tmp_path / "results" / "results.json").read_text())["comparisons"] == written["comparisons"]


def test_a_run_goes_on(tmp_path):
    shutil.copytree(FILES / "run", tmp_path / "run")
    strategy = FedRebasin(
        FedAvgM(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, server_momentum=0.9),
        spec=PermutationSpec.trace(mlp(), torch.zeros(2, 5)),
        frame="client",
        checkpoint=tmp_path / "run",
        resume=True,
    )
    start = ArrayRecord(random_state(mlp, 0))
    result = strategy.start(InlineGrid(clients(), CLIENTS), start, num_rounds=3)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
    assert (tmp_path / "run" / "round-000003").is_dir()
    before, after = (load_file(tmp_path / "run" / f"round-00000{n}" / "arrays.safetensors") for n in (2, 3))
    assert before.keys() == after.keys()
    assert before["frames/2/0"].tolist() == [3, 2, 1, 0]  # found in the first round, and kept
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("frames/"))
    assert not torch.equal(before["inner/0.momentum_vector/0"], after["inner/0.momentum_vector/0"])


def test_trained_models(tmp_path):
    def trains(who, done, total):
        raise AssertionError("it is there")

    shutil.copytree(FILES / "trained", tmp_path / "trained")
    lab = Lab(tmp_path / "trained", progress=trains)
    recipe = Recipe(width=2, epochs=1, batch_size=512)
    assert lab.trained(recipe).keys() == lab.model(recipe).state_dict().keys()


def test_checkpoints_of_a_merge():
    merged, a = (load_checkpoint(FILES / f"{name}.safetensors").state for name in ("merged", "a"))
    assert {key: tensor.shape for key, tensor in merged.items()} == {key: tensor.shape for key, tensor in a.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_requests_for_sums_and_what_answers_them(name):
    """A server of 0.1 asks a client of today and the other way round: names, settings, keys and sums are the same."""
    arrays = {key: found for key, found in load_file(FILES / "sums.safetensors").items() if key.startswith(f"{name}|")}
    records = {record: ConfigRecord(values) for record, values in SETTINGS[name].items()}
    for key, tensor in arrays.items():
        _, record, key = key.split("|")
        records.setdefault(record, ArrayRecord())[key] = Array(tensor.numpy())
    sums = records.pop("sums")
    statistic = read_statistic(RecordDict(records), STATISTICS.values(), torch.device("cpu"))
    found = collect_sums(statistic, mlp(), random_state(mlp, 0), batches())
    assert found.keys() == sums.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, torch.tensor(sums[key].numpy()), rtol=1e-3, atol=1e-4)
    described = describe_statistic(statistic, 20)
    assert described.keys() == records.keys()
    assert dict(described["statistic"]) == dict(records["statistic"])
    for record in described.keys() - {"statistic"}:
        assert described[record].keys() == records[record].keys()


def test_every_statistic_is_among_them():
    own = {kind.name for kind in STATISTICS.values() if kind.__module__.startswith("fedrebasin.")}
    assert own == SETTINGS.keys()


@pytest.mark.parametrize("command", OPTIONS)
def test_options(command):
    parameters = typer.main.get_command(app).commands[command].params
    offered = {option for parameter in parameters for option in parameter.opts}
    assert set(OPTIONS[command]) <= offered


def test_the_flower_app():
    for component in APP["components"].values():
        module, _, name = component.partition(":")
        assert hasattr(importlib.import_module(module), name)
    config = SimulationConfig.from_flower(APP["config"])
    assert config.to_flower().keys() == APP["config"].keys() - {"strategy", "out"}
