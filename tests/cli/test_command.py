"""The command: what it prints, what it writes, and one line with exit code 2 for everything that is wrong."""

import json
import subprocess
import sys

import pytest

from fedrebasin import PermutationSpec
from fedrebasin.cli import main

COMMANDS = ("compare", "merge", "barrier", "diff", "spec", "reproduce", "simulate", "new", "doctor", "cite")
QUICK = ["compare", "--width", "16", "--clients", "2", "--local-epochs", "1", "--strategies", "fedavg,rebasin"]


def test_compare_prints_a_table_and_writes_its_files(tmp_path, capsys):
    assert main([*QUICK, "--out", str(tmp_path / "new" / "folder")]) == 0
    printed = capsys.readouterr().out
    for name in ("fedavg", "rebasin", "mean-client", "best-client", "ensemble", "all-data"):
        assert name in printed
    results = json.loads((tmp_path / "new" / "folder" / "results.json").read_text())
    assert results["comparisons"][0]["config"]["clients"] == 2
    assert (tmp_path / "new" / "folder" / "report.html").read_text().startswith("<!doctype html>")


def test_json_is_all_there_is_on_standard_output(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*QUICK, "--json", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in found["comparisons"][0]["rows"]][:2] == ["fedavg", "rebasin"]
    assert found == json.loads((out / "results.json").read_text())
    assert main(["compare", "--from", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_every_command_shows_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"Example: fedrebasin {name}" in capsys.readouterr().out


def test_the_shell_completes_commands(monkeypatch, capsys):
    monkeypatch.setenv("_FEDREBASIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fedrebasin mer")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["merge"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["compare", "--strategies", "fedavg,merge"], ["fedavg,merge-many"]),
        (["compare", "--strategies", "fedavg,rebasin+head+te"], ["fedavg,rebasin+head+temperature"]),
        (["compare", "--strategies", "fedavg+temperature,wi"], ["fedavg+temperature,wide-avg"]),
        (["compare", "--model", "mlp,resnet20-"], ["mlp,resnet20-bn"]),
        (["simulate", "--partition", "di"], ["dirichlet"]),
        (["simulate", "--dataset", "fashion"], ["fashion-mnist"]),
    ],
)
def test_the_shell_completes_what_is_registered(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv("_FEDREBASIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["fedrebasin", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == offered


def test_interrupted_it_says_what_is_left(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedrebasin.simulations.run_study", interrupted)
    assert main(QUICK) == 130
    assert "interrupted: nothing is kept without --out" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main([*QUICK, "--out", str(tmp_path / "out")]) == 130
    assert "no comparison was finished" in capsys.readouterr().err
    monkeypatch.setattr("fedrebasin.simulations.reproduce", interrupted)
    assert main(["reproduce", "grb-counterexample", "--out", str(tmp_path)]) == 130
    assert f"models trained so far are in {tmp_path}" in capsys.readouterr().err


def test_every_option_mirrors_a_key_of_the_run_config(capsys):
    import tomllib
    from pathlib import Path

    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    keys = set(tomllib.loads(pyproject.read_text())["tool"]["flwr"]["app"]["config"]) - {"strategy"}
    assert main(["compare", "--help"]) == 0
    offered = capsys.readouterr().out
    assert [key for key in sorted(keys) if f"--{key}" not in offered] == []


def test_compare_offers_what_simulations_know(capsys, monkeypatch):
    import inspect

    from fedrebasin.cli.compare import compare
    from fedrebasin.simulations import BASES, CALIBRATORS, DEFAULT_STRATEGIES

    monkeypatch.setenv("COLUMNS", "300")
    assert inspect.signature(compare).parameters["strategies"].default == ",".join(DEFAULT_STRATEGIES)
    assert main(["compare", "--help"]) == 0
    offered = capsys.readouterr().out
    assert [name for name in (*BASES, *(f"+{name}" for name in CALIBRATORS)) if name not in offered] == []


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedrebasin 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--dataset", "digit"], "choose from digits, mnist"),
        (["compare", "--dataset", "cifar10"], "needs data-dir"),
        (["compare", "--dataset", "fashion-mnist", "--data-dir", "/no/such"], "there is no such folder"),
        (["compare", "--model", "lmp"], "did you mean mlp?"),
        (["compare", "--strategies", "fedavg,rebsain"], "did you mean rebasin?"),
        (["compare", "--strategies", ","], "name at least one"),
        (["compare", "--strategies", "rebasin+haed"], "did you mean head?"),
        (["compare", "--strategies", "fedavg+seqreg"], "seqreg needs aligned models"),
        (["compare", "--partition", "even"], "choose from iid, dirichlet, shards, label-skew"),
        (["compare", "--init", "same"], "choose from independent, shared"),
        (["compare", "--engine", "ray"], "choose from inline, flower"),
        (["compare", "--client-cpus", "2"], "client resources are for engine flower"),
        (["compare", "--engine", "flower", "--client-gpus", "-1"], "num_gpus -1.0: it must be a positive number"),
        (["compare", "--optimizer", "lbfgs"], "choose from adam, adamw, sgd"),
        (["compare", "--device", "gpu"], "choose from auto, cpu, cuda"),
        (["compare", "--clients", "0"], "must be positive"),
        (["compare", "--clients", "many"], "clients: 'many' is not a whole number"),
        (["compare", "--seeds", "0,one"], "seed: 'one' is not a whole number: write 0,1,2 or 0..2"),
        (["compare", "--width", ","], "width: name at least one value"),
        (["compare", "--partition", "iid,even"], "choose from iid, dirichlet"),
        (["compare", "--jobs", "-1"], "jobs -1"),
        (["compare", "--from", "/no/such/results.json"], "No such file"),
        (["compare", "--learning-rate", "-1"], "must be positive"),
        (["compare", "--stratgies", "fedavg"], "--strategies"),
        (["compare", "--clients", "12", "--partition", "label-skew"], "12 clients where the data has 10 classes"),
        (["compare", "--clients", "2000"], "cannot be split"),
        (["comprae"], "Choose from compare"),
        (["spec"], "--model"),
        (
            ["spec", "--model", "resnet18"],
            "write torchvision:NAME, timm:NAME, transformers:FOLDER or package",
        ),
        (["spec", "--model", "torchvision:resnet81"], "close to it: resnet18"),
        (["spec", "--model", "torchvision:resnet18,width=3"], "width"),
        (["spec", "--model", "transformers:/no/such"], "there is no config.json that says what model it is"),
        (["spec", "--model", "no_such_package:make"], "No module named"),
        (["spec", "--model", "fedrebasin.models:nothing"], "nothing"),
        (["spec", "--model", "fedrebasin.models:VGG61"], "close to it: VGG16"),
        (["spec", "--model", "torchvison:resnet18"], "did you mean torchvision?"),
        (["spec", "--model", "fedrebasin.models:MLP"], "in_features"),
        (["spec", "--model", "builtins:dict"], "not a torch.nn.Module"),
        (["spec", "--model", "fedrebasin.models:ResNet20", "--input", "1,3,x"], "1,3,224,224"),
        (["spec", "--model", "fedrebasin.models:ResNet20", "--input", "1,4,32,32"], "--input 1,4,32,32"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint


def test_a_folder_that_cannot_be_made_is_noticed_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*QUICK, "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_spec_prints_and_writes_the_spec(tmp_path, capsys):
    file = tmp_path / "spec.json"
    arguments = ["spec", "--model", "fedrebasin.models:ResNet20", "--input", "1,3,32,32", "--out", str(file)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "12 groups" in printed
    assert "traced and checked in" in printed
    assert len(PermutationSpec.load(file).groups) == 12
    assert main([*arguments[:5], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())


def test_the_installed_command_is_this_one():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from fedrebasin.cli import main; sys.exit(main(['--version']))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0


def test_importing_the_command_does_not_import_flwr():
    script = "import sys, fedrebasin.cli; assert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
