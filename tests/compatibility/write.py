"""Writes a file of every kind that there is. Those in ``written_by_0_1`` are of 0.1.0 (commit f5eb5ec):

git worktree add ../v0.1 f5eb5ec && PYTHONPATH=../v0.1 python tests/compatibility/write.py NEW_FOLDER
"""

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvgM
from nets import CLIENTS, HIDDEN, TRACED, batches, clients, mlp, random_state
from safetensors.torch import save_file

import fedrebasin
from fedrebasin import PermutationSpec, collect_sums
from fedrebasin.cli import main
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import FedRebasin

COMPARE = "compare --strategies fedavg,rebasin+temperature --width 4 --clients 2 --local-epochs 1 --batch-size 512"


def write_specs(folder):
    for name, (make, shape) in TRACED.items():
        PermutationSpec.trace(make(), torch.zeros(shape)).save(folder / f"{name}.json")


def write_results(folder):
    sys.argv = ["fedrebasin", *COMPARE.split(), "--out", str(folder / "results")]  # the file says what was called
    assert main(sys.argv[1:]) == 0
    for file in ("report.html", "picture.svg"):
        (folder / "results" / file).unlink()


def write_run(folder):
    """The checkpoint after two rounds, with a momentum inside and a frame for each node."""
    strategy = FedRebasin(
        FedAvgM(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, server_momentum=0.9),
        spec=PermutationSpec.trace(mlp(), torch.zeros(2, 5)),
        frame="client",
        checkpoint=folder / "run",
    )
    strategy.start(InlineGrid(clients(), CLIENTS), ArrayRecord(random_state(mlp, 0)), num_rounds=2)
    shutil.rmtree(folder / "run" / "round-000001")


def write_trained(folder):
    from fedrebasin.simulations.experiments.lab import Lab
    from fedrebasin.simulations.experiments.recipe import Recipe

    Lab(folder / "trained").trained(Recipe(width=2, epochs=1, batch_size=512))


def write_merged(folder):
    for name, seed in (("a", 0), ("b", 1)):
        layers = {key: tensor for key, tensor in random_state(mlp, seed).items() if not key.startswith("1.")}
        save_file(layers, folder / f"{name}.safetensors")
    paths = [str(folder / f"{name}.safetensors") for name in ("a", "b")]
    assert main(["merge", *paths, "-o", str(folder / "merged.safetensors")]) == 0


def statistics():
    other = random_state(mlp, 1)
    weights = ("0.weight", "3.weight")
    moments = {key: fedrebasin.Moments(20.0, torch.ones(HIDDEN), torch.full((HIDDEN,), 2.0)) for key in weights}
    spec = PermutationSpec.trace(mlp(), torch.zeros(2, 5))
    places = fedrebasin.unit_places(mlp(), other, batches()[0], spec)
    return [
        fedrebasin.ActivationCorrelation(places, other),
        fedrebasin.BatchNormMoments(),
        fedrebasin.GramMatrices(max_features=100),
        fedrebasin.HalfwayConnectivity(other),
        fedrebasin.HeadSums("5.weight", (3, HIDDEN)),
        fedrebasin.LayerRegression("3.weight", other),
        fedrebasin.PathEvaluation(other, 3),
        fedrebasin.PreActivationMoments(weights, moments),
        fedrebasin.TemperatureCurve((0.5, 1.0, 2.0)),
    ]


def write_sums(folder):
    """What the server asks for, and what clients answer."""
    from fedrebasin.strategies.wire import describe_statistic, encode_sums

    settings, arrays = {}, {}
    for statistic in statistics():
        sums = collect_sums(statistic, mlp(), random_state(mlp, 0), batches())
        for record, content in {**describe_statistic(statistic, 20), "sums": encode_sums(sums)}.items():
            if isinstance(content, ConfigRecord):
                settings[statistic.name] = {record: dict(content)}
            else:
                for key, array in content.items():
                    arrays[f"{statistic.name}|{record}|{key}"] = torch.from_numpy(array.numpy().copy())
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    save_file(arrays, folder / "sums.safetensors")


def write_options(folder):
    """The options of every command, and the keys of the run config."""
    import typer

    from fedrebasin.cli.app import app

    commands = typer.main.get_command(app).commands
    options = {name: sorted(o for p in command.params for o in p.opts) for name, command in commands.items()}
    (folder / "options.json").write_text(json.dumps(options, indent=1) + "\n")
    project = tomllib.loads((Path(fedrebasin.__file__).parents[1] / "pyproject.toml").read_text())
    (folder / "flower-app.json").write_text(json.dumps(project["tool"]["flwr"]["app"], indent=1) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    os.chdir(target)  # no path of this machine in the files
    for write in (write_specs, write_results, write_run, write_trained, write_merged, write_sums, write_options):
        write(Path())
    print(f"written by fedrebasin {fedrebasin.__version__}")
