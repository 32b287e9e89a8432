"""``fedrebasin merge``: what it writes, what it prints, how little memory it takes, and what it refuses."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedrebasin import AlignTo, MergeMany, WeightMatching, average
from fedrebasin.cli import main
from tests.cli.pairs import convolutions, pair, write_mlps

MLP = "tests.cli.pairs:mlp"
CONVOLUTIONS = "tests.cli.pairs:convolutions"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def close(found, expected):
    return found.keys() == expected.keys() and all(torch.allclose(found[k], expected[k], atol=1e-6) for k in expected)


@pytest.mark.parametrize("model", [[], ["--model", MLP, "--input", "2,64"]])
def test_a_model_and_itself_with_other_units_merge_into_it(tmp_path, capsys, model):
    a, _ = write_mlps(tmp_path)
    assert main(["merge", "a.safetensors", "b.pt", "-o", "m.safetensors", *model]) == 0
    assert close(load_file("m.safetensors"), a)
    printed = capsys.readouterr()
    assert "of 48" in printed.out
    assert "written: m.safetensors" in printed.out
    assert "removed the prefix 'module.' from every key" in printed.err
    assert "about" in printed.err
    assert "GB of memory" in printed.err
    found = metadata("m.safetensors")
    assert found["method"] == "weight-matching"
    names = [one["name"] for one in json.loads(found["inputs"])]
    assert names == ["a.safetensors", "b.pt"]
    assert all(len(one["sha256"]) == 64 for one in json.loads(found["inputs"]))


def test_json_is_all_there_is_on_standard_output(tmp_path, capsys):
    write_mlps(tmp_path, noise=0.01)
    assert main(["merge", "a.safetensors", "b.pt", "-o", "m.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["rows"]
    assert (first["before"], first["after"], first["moved"]) == (1.0, 1.0, 0)
    assert second["before"] < 0.6 < second["after"]
    assert 0 < second["moved"] <= second["units"] == 48
    assert found["estimated_seconds"] > 0


def test_it_is_what_the_library_does(tmp_path):
    a, b, spec = pair(convolutions, (2, 1, 8, 8), noise=0.05, seed=1)
    _, c, _ = pair(convolutions, (2, 1, 8, 8), noise=0.07, seed=2)
    for name, state in zip("abc", (a, b, c), strict=True):
        torch.save(state, f"{name}.pt")
    options = ["--model", CONVOLUTIONS, "--input", "2,1,8,8"]
    assert main(["merge", "a.pt", "b.pt", "c.pt", "--weights", "1,2,3", "-o", "m.safetensors", *options]) == 0
    expected = AlignTo(WeightMatching(), reference=0)(spec, [a, b, c], [1, 2, 3]).merged
    found = load_file("m.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    options += ["--method", "merge-many", "--force"]
    assert main(["merge", "a.pt", "b.pt", "c.pt", "-o", "m.safetensors", *options]) == 0
    expected = MergeMany()(spec, [a, b, c]).merged
    found = load_file("m.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_average_needs_no_model_and_moves_nothing(tmp_path, capsys):
    a, b, _ = pair(convolutions, (2, 1, 8, 8), noise=0.1)
    save_file(a, "a.safetensors")
    save_file({f"_orig_mod.{key}": tensor.contiguous() for key, tensor in b.items()}, "b.safetensors")
    assert main(["merge", "a.safetensors", "b.safetensors", "--method", "average", "-o", "m.safetensors"]) == 0
    expected, found = average([a, b]), load_file("m.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "averaged as they are" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["weight-matching", "average"])
def test_with_a_base_the_weighted_differences_are_added_to_it(tmp_path, method):
    a, b = write_mlps(tmp_path)
    base = {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in a.items()}
    save_file(base, "base.safetensors")
    options = ["--base", "base.safetensors", "--weights", "0.5,1", "--method", method, "-o", "m.safetensors"]
    assert main(["merge", "a.safetensors", "b.pt", *options]) == 0
    second = a if method == "weight-matching" else b
    expected = {key: base[key] + 0.5 * (a[key] - base[key]) + (second[key] - base[key]) for key in base}
    assert close(load_file("m.safetensors"), expected)
    assert metadata("m.safetensors")["base"] == "base.safetensors"


def test_data_recalibrate_batch_norm_and_fit_a_temperature(tmp_path, capsys):
    a, b, _ = pair(convolutions, (2, 1, 8, 8), noise=0.02)
    for name, state in (("a", a), ("b", b)):
        torch.save(state, f"{name}.pt")
    options = ["--model", CONVOLUTIONS, "--data", "digits", "--examples", "300", "-o", "m.safetensors"]
    assert main(["merge", "a.pt", "b.pt", *options]) == 0
    printed = capsys.readouterr().out
    assert "BatchNorm layers taken anew" in printed
    found = json.loads(metadata("m.safetensors")["calibration"])
    assert (found["batch_norms"], found["loss"]) != (0, found["loss_before"])
    assert found["calibrated_loss"] <= found["loss"] + 0.05
    assert float(metadata("m.safetensors")["beta"]) == found["beta"]
    running = [key for key in a if key.endswith("running_mean")]
    assert any(not torch.allclose(load_file("m.safetensors")[key], a[key], atol=1e-3) for key in running)


def test_a_spec_from_a_file_stands_for_the_model(tmp_path):
    a, _ = write_mlps(tmp_path)
    assert main(["spec", "--model", MLP, "--input", "2,64", "--out", "spec.json"]) == 0
    assert main(["merge", "a.safetensors", "b.pt", "--spec", "spec.json", "-o", "m.safetensors"]) == 0
    assert close(load_file("m.safetensors"), a)


def test_interrupted_it_leaves_nothing_and_says_so(tmp_path, monkeypatch, capsys):
    write_mlps(tmp_path)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedrebasin.files.merge_files", interrupted)
    assert main(["merge", "a.safetensors", "b.pt", "-o", "m.safetensors"]) == 130
    assert "interrupted: nothing was written to m.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()


class Trap:
    def __reduce__(self):
        return (open, ("was-run", "w"))


@pytest.fixture
def _files(tmp_path):
    write_mlps(tmp_path)
    state, _, _ = pair(convolutions, (2, 1, 8, 8))
    torch.save(state, "convolutions.pt")
    torch.save({"state_dict": {"layers.0.weight": torch.ones(2), "x": Trap()}}, "trap.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    other = {"layers.0.weight": torch.zeros(24, 64), "layers.0.bias": torch.zeros(7), "new": torch.zeros(3)}
    save_file(other, "other.safetensors")


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["a.safetensors", "none.pt"], ["none.pt: there is no such file"]),
        (["a.safetensors", "text.pt"], ["text.pt: neither a safetensors file nor"]),
        (["a.safetensors", "trap.pt"], ["trap.pt: not plain tensors", "refused, and nothing in it was run"]),
        (["a.safetensors"], ["give at least two"]),
        (
            ["a.safetensors", "other.safetensors"],
            [
                "other.safetensors does not fit a.safetensors",
                "tensors missing: 4 (layers.1.bias (24,)",
                "tensors too many: 1 (new (3,))",
                "layers.0.bias (7,) where a.safetensors has (24,)",
            ],
        ),
        (
            ["a.safetensors", "b.pt", "--model", CONVOLUTIONS],
            ["a.safetensors does not fit tests.cli.pairs:convolutions", "0.weight"],
        ),
        (["convolutions.pt", "convolutions.pt"], ["not a plain stack of dense layers", "--model"]),
        (["a.safetensors", "b.pt", "--method", "wieght-matching"], ["did you mean weight-matching?"]),
        (["a.safetensors", "b.pt", "--model", "torchvision:resnet81"], ["close to it: resnet18"]),
        (["a.safetensors", "b.pt", "--model", "torchvison:resnet18"], ["did you mean torchvision?"]),
        (["a.safetensors", "b.pt", "--model", "fedrebasin.models:ResNet02"], ["close to it: ResNet20"]),
        (["a.safetensors", "b.pt", "--weights", "1"], ["1 weights for 2 checkpoints"]),
        (["a.safetensors", "b.pt", "--weights", "1,x"], ["such as 0.3,0.7"]),
        (["a.safetensors", "b.pt", "--weights", "0,0"], ["not all zero"]),
        (
            ["a.safetensors", "b.pt", "--base", "a.safetensors", "--method", "merge-many"],
            ["does not align to a reference"],
        ),
        (["a.safetensors", "b.pt", "--data", "digits"], ["--model"]),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "digit"], ["did you mean digits?"]),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "/no/such"], ["/no/such: there is no such folder"]),
        (["a.safetensors", "b.pt", "--model", MLP, "--data", "cifar10"], ["needs data-dir"]),
        (["a.safetensors", "b.pt", "--model", MLP], ["--input 1,3,224,224"]),
        (["a.safetensors", "b.pt", "--model", MLP, "--input", "2,x"], ["input_ids:int64:1,16"]),
        (["a.safetensors", "b.pt", "--model", MLP, "--input", "x:2,64", "--input", "2"], ["name each of them once"]),
        (["a.safetensors", "b.pt", "--model", f"{MLP},width"], ["write num_classes=10"]),
        (["a.safetensors", "b.pt", "--dtype", "float8"], ["choose from float32, float16, bfloat16, float64"]),
        (["a.safetensors", "b.pt", "--prefix", "x."], ["no key begins with 'x.'; they begin with layers."]),
        (["b.pt", "b.pt", "--key", "ema"], ["b.pt: no state dict under 'ema': there are state_dict"]),
        (["a.safetensors", "b.pt", "-o", "m.pt"], ["name it m.safetensors"]),
        (["a.safetensors", "b.pt", "-o", "none/m.safetensors"], ["there is no folder none"]),
    ],
)
def test_wrong_use_gets_one_line_and_exit_code_2(arguments, messages, tmp_path, capsys):
    out = [] if "-o" in arguments else ["-o", "m.safetensors"]
    assert main(["merge", *arguments, *out]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert [message for message in messages if message not in complaint] == []
    assert complaint.startswith("fedrebasin: ")
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "m.safetensors").exists()


def test_torchvision_models_take_the_checkpoints_number_of_classes(tmp_path, capsys):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    for name in "ab":
        save_file(squeezenet1_1(num_classes=3).state_dict(), f"{name}.safetensors")
    options = ["--model", "torchvision:squeezenet1_1", "--input", "1,3,64,64", "--method", "weight-matching"]
    assert main(["merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors", *options]) == 0
    assert load_file("m.safetensors")["classifier.1.weight"].shape[0] == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_two_checkpoints_merge_in_less_than_twice_the_memory_of_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    sizes = [200_000, 256, 256, 10]
    state = {
        f"{k}.weight": torch.randn(b, a, generator=generator) for k, (a, b) in enumerate(itertools.pairwise(sizes))
    }
    orders = [torch.randperm(size, generator=generator) for size in sizes]
    orders[0], orders[-1] = torch.arange(sizes[0]), torch.arange(sizes[-1])
    other = {f"{k}.weight": state[f"{k}.weight"][orders[k + 1]][:, orders[k]] for k in range(len(state))}
    save_file(state, "a.safetensors")
    save_file(other, "b.safetensors")
    save_file({"0.weight": torch.randn(4, 3), "1.weight": torch.randn(2, 4)}, "small.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    script = (
        "import sys\n"
        "from fedrebasin.cli import main\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return 1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1])\n"
        "assert main(['merge', 'small.safetensors', 'small.safetensors', '-o', 'm.safetensors']) == 0\n"  # imports
        "before = peak()\n"
        "assert main(['merge', 'a.safetensors', 'b.safetensors', '-o', 'n.safetensors']) == 0\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 2 * size
    assert close(load_file("n.safetensors"), state)
