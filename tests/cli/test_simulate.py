"""``fedrebasin simulate``: a run of Flower is submitted, followed, and its status is the exit code."""

import json
import tomllib

import pytest

from fedrebasin.cli import main
from fedrebasin.cli import simulate as simulate_command
from fedrebasin.simulations import Comparison, Figures, Row, SimulationConfig, Study, write_results

FLWR = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$1" in
run) cp "$2/pyproject.toml" {folder}/app.toml
     [ -d {folder}/made ] && cp {folder}/made/results.json "$(sed -n 's/^out = "\\(.*\\)"/\\1/p' "$2/pyproject.toml")"
     printf '%s\\n' 'some words before {run}';;
list) echo '{list}';;
log) echo 'a line of the log';;
esac
"""


def install(folder, monkeypatch, run, status="finished:completed", details="", results=True):
    """A stand-in for Flower's command; what it was asked for is in ``calls``."""
    answer = {"success": True, "runs": [{"run-id": "7", "status": status, "status-details": details}]}
    command = folder / "flwr"
    command.write_text(FLWR.format(folder=folder, run=json.dumps(run), list=json.dumps(answer)))
    command.chmod(0o755)
    if results:
        rows = (Row("rebasin", 0, 1, Figures(0.5, 1.0, 0.9, 1.5, 0.1), 0.2),)
        found = Comparison(SimulationConfig(), ("rebasin",), rows, {}, (), 1.0)
        write_results(folder / "made", Study((found,)))
    monkeypatch.setattr(simulate_command, "flwr_command", lambda: str(command))
    monkeypatch.setattr(simulate_command, "POLL_SECONDS", 0.05)


RUN = {"success": True, "run-id": "7"}


def test_a_run_that_completes(tmp_path, monkeypatch, capfd):
    install(tmp_path, monkeypatch, RUN)
    arguments = ["--strategy", "rebasin", "--clients", "3", "--width", "16", "--init", "shared"]
    assert main(["simulate", *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr()
    assert "50.0 %" in printed.out
    assert "run 7: finished:completed" in printed.out
    assert "a line of the log" in printed.err
    app = tomllib.loads((tmp_path / "app.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"]["serverapp"] == "fedrebasin.simulations.app.server:app"
    chosen = {"strategy": "rebasin", "clients": 3, "width": 16, "init": "shared", "dataset": "digits"}
    assert chosen.items() <= app["config"].items()
    calls = (tmp_path / "calls").read_text()
    assert "--federation-config num-supernodes=3" in calls
    assert "list --run-id 7 --format json" in calls


def test_json_is_all_there_is_on_standard_output(tmp_path, monkeypatch, capfd):
    install(tmp_path, monkeypatch, RUN)
    assert main(["simulate", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["run_id"], found["status"]) == ("7", "finished:completed")
    assert found["rows"][0]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": RUN, "status": "finished:failed", "details": "no data"}, "run 7 ended as finished:failed: no data"),
        ({"run": RUN, "results": False}, "run 7 completed without a usable model"),
        ({"run": {"success": False, "error-message": "unknown\nkey"}}, "flwr run: unknown key"),
        ({"run": {"success": True}}, "flwr run gave no run id"),
    ],
)
def test_a_run_that_fails_is_exit_code_1(tmp_path, monkeypatch, capfd, options, message):
    install(tmp_path, monkeypatch, **options)
    assert main(["simulate"]) == 1
    complaint = capfd.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith(f"fedrebasin: {message}")


def test_interrupted_it_says_how_to_end_the_run(tmp_path, monkeypatch, capfd):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    install(tmp_path, monkeypatch, RUN)
    monkeypatch.setattr(simulate_command, "_follow", interrupted)
    assert main(["simulate"]) == 130
    assert "interrupted: run 7 goes on in Flower's SuperLink; 'flwr stop 7' ends it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "rebsain"], "did you mean rebasin?"),
        (["--dataset", "digit"], "did you mean digits?"),
        (["--clients", "0"], "must be positive"),
        (["--augment", "flip"], "choose from none, crop, crop-flip"),
    ],
)
def test_wrong_use_submits_nothing(tmp_path, monkeypatch, capfd, arguments, message):
    install(tmp_path, monkeypatch, RUN)
    assert main(["simulate", *arguments]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "calls").exists()


def test_results_of_another_run_are_kept(tmp_path, monkeypatch, capfd):
    install(tmp_path, monkeypatch, RUN)
    assert main(["simulate", "--out", str(tmp_path / "made")]) == 2
    assert "results.json of another run" in capfd.readouterr().err
    monkeypatch.setattr(simulate_command, "flwr_command", lambda: None)
    assert main(["simulate"]) == 2
    assert "pip install flwr" in capfd.readouterr().err


def test_the_app_takes_every_key_of_the_run_config(tmp_path):
    """What ``flwr run .`` of a clone can be told, ``simulate`` can."""
    from pathlib import Path

    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    keys = tomllib.loads(pyproject.read_text())["tool"]["flwr"]["app"]["config"]
    config = {**SimulationConfig(clients=2).to_flower(), "strategy": "merge-many", "out": ""}
    app = simulate_command.write_app(tmp_path / "app", config)
    written = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert written == keys
