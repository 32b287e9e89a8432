"""What ``merge`` writes, and where: nothing is lost, and what was chosen or would be done is said."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedrebasin.cli import main
from tests.cli.pairs import write_mlps

MERGE = ["merge", "a.safetensors", "b.pt"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mlps(tmp_path)


def complaint(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_output_that_exists_or_is_an_input_is_refused_without_force(tmp_path, capsys):
    given = (tmp_path / "a.safetensors").read_bytes()
    os.symlink("a.safetensors", "link.safetensors")
    os.link("a.safetensors", "hard.safetensors")
    for name in ("a", "link", "hard"):
        assert main([*MERGE, "-o", f"{name}.safetensors"]) == 2
        assert "is one of the inputs: choose another --out, or replace it with --force" in complaint(capsys)
    save_file({"x": torch.ones(1)}, "old.safetensors")
    assert main([*MERGE, "-o", "old.safetensors"]) == 2
    assert "old.safetensors exists" in complaint(capsys)
    assert (tmp_path / "a.safetensors").read_bytes() == given
    assert load_file("old.safetensors").keys() == {"x"}
    assert main([*MERGE, "-o", "old.safetensors", "--force"]) == 0
    assert load_file("old.safetensors").keys() == load_file("a.safetensors").keys()
    expected = load_file("old.safetensors")
    assert main([*MERGE, "-o", "a.safetensors", "--force"]) == 0  # it is read while its successor is written
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load_file("a.safetensors").items())


def test_what_cannot_be_written_is_noticed_before_the_work(tmp_path, capsys, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("it has begun to work")

    def full(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sys.modules["fedrebasin.files.merge_files"], "aligned", work)
    (tmp_path / "folder.safetensors").mkdir()
    assert main([*MERGE, "-o", "folder.safetensors", "--force"]) == 2
    assert "is not replaced" in complaint(capsys)
    with monkeypatch.context() as disk:
        disk.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
        assert main([*MERGE, "-o", "m.safetensors"]) == 2
        assert "GB are needed where 0.0 GB are free" in complaint(capsys)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert main([*MERGE, "-o", "m.safetensors"]) == 2
    assert "m.safetensors: cannot be written: Read-only file system" in complaint(capsys)
    assert not (tmp_path / "m.safetensors").exists()


def test_dtype_rounds_once(capsys):
    a = load_file("a.safetensors")
    b = {key.removeprefix("module."): tensor for key, tensor in torch.load("b.pt")["state_dict"].items()}
    for name in ("bfloat16", "float64"):
        assert main([*MERGE, "-o", f"{name}.safetensors", "--dtype", name, "--method", "average"]) == 0
        dtype = getattr(torch, name)
        for key, tensor in load_file(f"{name}.safetensors").items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, ((a[key].double() + b[key].double()) / 2).to(dtype))
    save_file({key: 1e5 * torch.ones_like(tensor) for key, tensor in a.items()}, "large.safetensors")
    capsys.readouterr()
    large = ["merge", "large.safetensors", "large.safetensors", "-o", "m.safetensors", "--dtype", "float16"]
    assert main([*large, "--method", "average"]) == 2
    assert "its largest number is too large for float16" in complaint(capsys)
    assert not os.path.exists("m.safetensors")


def test_weights_that_do_not_sum_to_one_are_said(capsys):
    average = [*MERGE, "--method", "average", "-o", "m.safetensors", "--force"]
    assert main([*average, "--weights", "1,3"]) == 0
    said = capsys.readouterr().err
    assert "the weights 1,3 sum to 4, not to 1: each is divided by that, which gives 0.25, 0.75" in said
    for weights in ("0.3,0.7", "0.1,0.9"):
        assert main([*average, "--weights", weights]) == 0
        assert "sum to" not in capsys.readouterr().err
    assert main([*average, "--weights", "1,3", "--base", "a.safetensors"]) == 0
    assert "sum to" not in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    before = sorted(os.listdir(tmp_path))
    assert main([*MERGE, "-o", "m.safetensors", "--dry-run", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr()
    assert "GB of memory" in printed.err
    assert "48 units in 2 groups may move" in printed.out
    assert "nothing was done" in printed.out
    assert main([*MERGE, "-o", "m.safetensors", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["inputs"]] == ["a.safetensors", "b.pt"]
    assert found["output_bytes"] == sum(tensor.nbytes for tensor in load_file("a.safetensors").values())
    assert found["estimated_seconds"] > 0
    assert sorted(os.listdir(tmp_path)) == before
    assert main([*MERGE, "-o", "a.safetensors", "--dry-run"]) == 2


def test_infinite_numbers_are_said(capsys):
    save_file({"mask": torch.tensor([0.0, -torch.inf])}, "masked.safetensors")
    merge = ["merge", "masked.safetensors", "masked.safetensors", "--method", "average", "-o", "m.safetensors"]
    assert main(merge) == 0
    printed = capsys.readouterr().out
    assert "infinite numbers, as in the checkpoints: mask" in printed
    assert "finite" not in printed.replace("infinite", "")


def test_it_ends_with_what_became_of_the_layers_and_of_the_data(capsys):
    options = ["--model", "tests.cli.pairs:mlp", "--data", "digits", "--examples", "200", "-o", "m.safetensors"]
    assert main([*MERGE, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][1]["by_layer"] == pytest.approx(dict.fromkeys(found["rows"][1]["by_layer"], 1.0))
    first, second = (row["score"] for row in found["rows"])
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert found["calibration"]["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert found["unaligned"]["loss"] != pytest.approx(first["loss"], rel=1e-3)
    assert main([*MERGE, *options, "--force"]) == 0
    printed = capsys.readouterr().out
    assert "every number of the result is finite" in printed
    assert "least similar of" in printed
    assert "averaged as they are: accuracy" in printed
