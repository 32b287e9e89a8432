"""``fedrebasin barrier``: both definitions, before and after matching, and its files."""

import json

import pytest
import torch

from fedrebasin import analysis
from fedrebasin.cli import main
from tests.cli.pairs import convolutions, pair, write_mlps

MLP = "tests.cli.pairs:mlp"
CONVOLUTIONS = "tests.cli.pairs:convolutions"
DATA = ["--data", "digits", "--examples", "100", "--points", "5"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_same_network_with_other_units_has_no_barrier_once_matched(tmp_path, capsys):
    write_mlps(tmp_path)
    assert main(["barrier", "a.safetensors", "b.pt", "--model", MLP, *DATA, "--out", "new/between"]) == 0
    printed = capsys.readouterr().out
    assert "Git Re-Basin" in printed
    assert "simultaneous" in printed
    folder = tmp_path / "new" / "between"
    found = json.loads((folder / "barrier.json").read_text())
    assert found["similarity"] == pytest.approx(1)
    assert found["points"] == 5
    after, before = found["curves"]["after"], found["curves"]["before"]
    assert after["losses"] == pytest.approx([after["losses"][0]] * 5, rel=1e-4)
    assert all(value == pytest.approx(0, abs=1e-4) for value in after["barriers"].values())
    assert before["losses"][0] == pytest.approx(before["losses"][-1], rel=1e-4)
    assert before["losses"][2] != pytest.approx(before["losses"][0], rel=1e-3)
    assert "<desc" in (folder / "barrier.svg").read_text()
    assert (folder / "barrier.png").read_bytes().startswith(b"\x89PNG")


def test_batch_norm_is_recalibrated_at_every_point_unless_it_is_not_wanted(tmp_path, capsys):
    a, b, _ = pair(convolutions, (2, 1, 8, 8), noise=0.1)
    for name, state in (("a", a), ("b", b)):
        torch.save(state, f"{name}.pt")
    losses = []
    for option in ("--recalibrate", "--no-recalibrate"):
        assert main(["barrier", "a.pt", "b.pt", "--model", CONVOLUTIONS, *DATA, "--json", option]) == 0
        losses.append(json.loads(capsys.readouterr().out)["curves"]["before"]["losses"])
    assert losses[0] != losses[1]


def test_interrupted_it_keeps_the_finished_curve(tmp_path, monkeypatch, capsys):
    real, calls = analysis.loss_barrier, []

    def second_time_interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(analysis, "loss_barrier", second_time_interrupted)
    write_mlps(tmp_path)
    assert main(["barrier", "a.safetensors", "b.pt", "--model", MLP, *DATA, "--out", "out"]) == 130
    assert "the curve before matching is in out/barrier.json" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out" / "barrier.json").read_text())["curves"]) == ["before"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors", "none.pt", "--model", MLP, *DATA], "none.pt: there is no such file"),
        (["a.safetensors", "b.pt", "--model", MLP], "--data"),
        (["a.safetensors", "b.pt", *DATA], "--model"),
        (["a.safetensors", "b.pt", "--model", CONVOLUTIONS, *DATA], "does not fit tests.cli.pairs:convolutions"),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "digit"], "did you mean digits?"),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "no_module:data"], "No module named"),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "digits", "--points", "1"], "at least its two ends"),
        (["a.safetensors", "b.pt", "--model", MLP, *DATA, "--method", "greddy"], "did you mean greedy?"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    write_mlps(tmp_path)
    assert main(["barrier", *arguments]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in complaint
