"""What people meet: narrow terminals, no terminal, GPUs that are not there, misspelt names, ranges of seeds."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from fedrebasin.cli import main
from fedrebasin.cli.bars import Bars
from fedrebasin.cli.options import complete_experiment, parse_values
from fedrebasin.cli.tables import fit
from fedrebasin.devices import pick_device
from fedrebasin.errors import RebasinError
from fedrebasin.simulations import EXPERIMENTS
from tests.cli.pairs import write_mlps

ROOT = Path(__file__).parents[2]
QUICK = ["compare", "--width", "8", "--clients", "2", "--local-epochs", "1"]
NAMES = (
    "rebasin+seqreg+head+temperature",
    "transformer.h.0.attn.c_attn",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_is_as_wide_as_the_terminal_and_breaks_names_at_joints_only(width):
    table = Table()
    for column in ("", "accuracy", "loss", "calibrated loss", "beta", "server seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name in NAMES:
        table.add_row(name, "95.8\N{NO-BREAK SPACE}%", "0.188", "0.115", "11.574", "3.28")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(fit(table, width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    rows = [re.split("[│┃]", line.strip("│┃")) if "│" in line else line.split("  ") for line in lines]
    pieces = [row[0].strip() for row in rows]
    for name in NAMES:
        assert name in "".join(pieces)
    tokens = [re.split(r"(?<=[._])|(?=\+)", name) for name in NAMES]
    allowed = {"".join(one[i:j]) for one in tokens for i in range(len(one)) for j in range(i, len(one) + 1)}
    assert [piece for piece in pieces if re.match(r"[\w+]", piece) and piece not in allowed] == []
    for number in ("95.8 %", "0.188", "0.115", "11.574", "3.28"):
        assert "\n".join(lines).count(number) == 3


@pytest.mark.parametrize("columns", ["60", "80"])
def test_every_number_of_a_comparison_stands_whole_in_a_narrow_terminal(columns, tmp_path, monkeypatch, capsys):
    names = ["--strategies", "fedavg,rebasin+seqreg+head+temperature"]
    if columns == "60":
        names += ["--seeds", "0..1", "--jobs", "1"]
    monkeypatch.setenv("COLUMNS", columns)
    assert main([*QUICK, *names, "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out.partition("all on 80 %")[0]
    assert max(map(len, table.splitlines())) <= int(columns)
    assert "\u2026" not in table
    assert re.search(r"\+head", table)
    assert "+temperature" in table
    assert "calibrated" in table
    for number in re.findall(r"[\d.]+", table):
        assert not number.startswith(".")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    assert len(rows) == sum(len(one["rows"]) for one in found)
    assert rows[0]["strategy"] == "fedavg"
    assert float(rows[0]["accuracy"]) == found[0]["rows"][0]["accuracy"]
    assert [row["seed"] for row in rows] == [str(one["config"]["seed"]) for one in found for _ in one["rows"]]


def test_without_a_terminal_there_is_a_line_every_few_seconds(capsys):
    with Bars(every=0.01) as bars:
        bars("training", 3, 60)
        for _ in range(1000):
            if said := capsys.readouterr().err:
                break
            time.sleep(0.01)
    assert "training 3/60" in said
    assert "\x1b" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "arguments",
    [
        [*QUICK],
        [*QUICK, "--engine", "flower"],
        ["simulate"],
        ["reproduce", "grb-counterexample", "--out", "out"],
        ["barrier", "a.safetensors", "b.pt", "--model", "tests.cli.pairs:mlp", "--data", "digits"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_gpu_that_is_not_there_is_a_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mlps(tmp_path)
    assert main([*arguments, "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "torch finds no GPUs here: use 'auto' or 'cpu'" in error
    assert error.count("\n") == 1


def test_other_devices_that_are_not_there_are_errors_of_ours():
    for name in ("cuda:99", "mps", "gpu"):
        with pytest.raises(RebasinError, match="use 'auto'"):
            pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mrege"], "(did you mean merge?)"),
        (["compare", "--from", "reslts.json"], "No such file or directory (did you mean results.json?)"),
        (["diff", "a.safetensor", "b.pt"], "there is no such file (did you mean a.safetensors?)"),
        (["spec", "--model", "tests.cli.pairs:convolutions"], "which is a guess (pass --input with the channels"),
        (["compare", "--seeds", "2..0"], "write the smaller number first, as in 0..2"),
        (["reproduce", "grb-width", "--seeds", "x"], "'x' is not a whole number: write 0,1,2 or 0..2"),
    ],
)
def test_what_is_misspelt_or_guessed_gets_a_hint(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mlps(tmp_path)
    (tmp_path / "results.json").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_seeds_are_counts_lists_or_ranges(tmp_path):
    assert parse_values("7,0..2", int) == [7, 0, 1, 2]
    with pytest.raises(ValueError, match="no range"):
        parse_values("0..100000000000", int)
    for text, seeds in (("2", [0, 1]), ("0..2", [0, 1, 2]), ("5,7", [5, 7])):
        assert main(["reproduce", "grb-counterexample", "--seeds", text, "--out", str(tmp_path)]) == 0
        assert json.loads((tmp_path / "grb-counterexample.json").read_text())["setting"]["seeds"] == seeds


def test_the_shell_completes_experiments_without_loading_them():
    assert sorted(complete_experiment("")) == sorted(EXPERIMENTS)
    assert complete_experiment("lewc-w")
    assert all(name.startswith("lewc-w") for name in complete_experiment("lewc-w"))
    script = "import sys; from fedrebasin.cli.options import complete_experiment as c; c('l'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True, text=True)
    assert {"torch", "numpy", "flwr"}.isdisjoint(done.stdout.split())


def test_interrupted_while_it_is_loaded_it_says_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fedrebasin.cli.app", None)

    class Interrupting:
        def find_spec(self, *arguments):
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "fedrebasin.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main(["--version"]) == 130
    assert capsys.readouterr().err == "fedrebasin: interrupted\n"


@pytest.mark.slow
def test_interrupted_at_work_it_says_a_line():
    work = [*QUICK, "--seeds", "0..9", "--jobs", "2", "--local-epochs", "1000"]
    command = [sys.executable, "-m", "fedrebasin", *work]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    first = process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert " s: " in first
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert rest.strip().splitlines()[-1] == "fedrebasin: interrupted: nothing is kept without --out"


def test_what_to_cite_is_what_the_citation_file_says(capsys):
    assert main(["cite"]) == 0
    said = capsys.readouterr().out.replace("{Git Re-Basin}", "Git Re-Basin")
    written = (ROOT / "CITATION.cff").read_text()
    for name in ("title", "url", "family-names"):
        found = re.findall(rf"{name}: \"?([^\"\n]+)", written)
        assert found
        assert [text for text in found if text not in said] == []
