"""``fedrebasin reproduce``: the list, one run with its files, and one line for everything that is wrong."""

import json

import pytest

from fedrebasin.cli import main
from fedrebasin.simulations import EXPERIMENTS


def test_the_list_names_every_experiment(capsys):
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in EXPERIMENTS if name not in printed] == []


def test_the_list_and_a_run_as_json(tmp_path, capsys):
    assert main(["reproduce", "--list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(EXPERIMENTS)
    assert main(["reproduce", "grb-counterexample", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "grb-counterexample.json").read_text())


def test_a_run_prints_a_table_and_writes_its_files(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["reproduce", "grb-counterexample", "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "holds" in printed
    assert "the paper's" in printed
    content = json.loads((out / "grb-counterexample.json").read_text())
    assert content["result"]["claims"][0]["verdict"] == "holds"
    assert (out / "grb-counterexample.svg").read_text().startswith("<svg")
    assert (out / "grb-counterexample.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which experiment? choose from grb"),
        (["grb-wdith"], "did you mean grb-width?"),
        (["grb-width", "--scale", "large"], "choose from small, paper"),
        (["grb-width", "--dataset", "mnist"], "needs data-dir"),
        (["grb-width", "--seeds", "-2"], "must not be negative"),
    ],
)
def test_everything_wrong_gets_one_line_and_code_2(arguments, message, tmp_path, capsys):
    assert main(["reproduce", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
