"""Checkpoints as trainers write them: the model is found among what lies beside it, and the choice is said."""

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from fedrebasin import DataError, MergeError, PermutationSpec
from fedrebasin.cli import main
from fedrebasin.files import load_checkpoint, merge_files, open_checkpoints
from tests.cli.pairs import mlp, pair


def under(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def trained(state):
    """A model of these weights with an optimiser that has made a step."""
    model = mlp()
    model.load_state_dict(state)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 64)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def averaged(state):
    model = mlp()
    model.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


#: What is written for a model, given its state dict and an averaged copy; and what the notes must say.
WRAPPERS = {
    "DistributedDataParallel": (lambda b, ema: under("module.", b), "removed the prefix 'module.'"),
    "torch.compile": (lambda b, ema: under("_orig_mod.", b), "removed the prefix '_orig_mod.'"),
    "Opacus": (lambda b, ema: under("_module.", b), "removed the prefix '_module.'"),
    "FSDP": (lambda b, ema: under("_fsdp_wrapped_module.", b), "read _fsdp_wrapped_module."),
    "AveragedModel": (lambda b, ema: averaged(b), "removed the prefix 'module.'"),
    "Lightning": (lambda b, ema: {"state_dict": under("net.", b), "hyper_parameters": {"lr": 0.1}}, "under 'net.'"),
    "Lightning with a loss weight": (
        lambda b, ema: {"state_dict": {**under("model.", b), "criterion.weight": torch.ones(3)}, "epoch": 1},
        "left out criterion.weight",
    ),
    "Lightning with an averaged copy": (
        lambda b, ema: {"state_dict": {**under("model_ema.", ema), **under("model.", b)}},
        "took the tensors under 'model.', not 'model_ema.' (--prefix chooses)",
    ),
    "timm": (lambda b, ema: {"state_dict": b, "state_dict_ema": ema}, "not state_dict_ema (--key chooses)"),
    "BasicSR": (lambda b, ema: {"params": b, "params_ema": ema}, "not params_ema (--key chooses)"),
    "one entry of another name": (lambda b, ema: {"generator": b, "epoch": 3}, ""),
    "nested": (lambda b, ema: {"checkpoint": {"net": b}}, ""),
    "an optimiser beside": (lambda b, ema: {"model": b, "optimizer": trained(b), "rng": torch.ones(5)}, ""),
}


@pytest.fixture
def models():
    a, b, spec = pair(mlp, (2, 64))
    return a, b, {key: tensor + 1 for key, tensor in b.items()}, spec


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("known", [True, False], ids=["with the model", "without"])
def test_the_model_is_found_and_the_choice_said(wrapper, known, models, tmp_path):
    a, b, ema, spec = models
    write, note = WRAPPERS[wrapper]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pt"]
    save_file(a, paths[0])
    torch.save(write(b, ema), paths[1])
    opened = open_checkpoints(paths, model=mlp() if known else None)
    assert note in " ".join(opened.notes)
    merge_files(opened, tmp_path / "m.safetensors", spec)
    merged = load_file(tmp_path / "m.safetensors")
    assert merged.keys() == a.keys()
    assert all(torch.allclose(merged[key], a[key], atol=1e-6) for key in a)


def test_a_wrapped_file_can_be_the_first(models, tmp_path):
    a, b, ema, spec = models
    save_file(b, tmp_path / "b.safetensors")
    for number, (write, _) in enumerate(WRAPPERS.values()):
        torch.save(write(a, ema), path := tmp_path / f"{number}.pt")
        merge_files([path, tmp_path / "b.safetensors"], out := tmp_path / f"{number}.safetensors", spec, model=mlp())
        assert all(torch.allclose(tensor, a[key], atol=1e-6) for key, tensor in load_file(out).items())


def test_key_and_prefix_choose(models, tmp_path):
    _, b, ema, _ = models
    torch.save({"state_dict": b, "state_dict_ema": ema}, tmp_path / "entries.pt")
    torch.save({**under("model.", b), **under("model_ema.", ema)}, tmp_path / "prefixes.pt")
    for name, choice in (("entries", {"key": "state_dict_ema"}), ("prefixes", {"prefix": "model_ema."})):
        for model in (mlp(), None):
            (one,) = open_checkpoints([tmp_path / f"{name}.pt"], model=model, **choice).checkpoints
            assert all(torch.equal(one.state[key], ema[key]) for key in b)


def test_what_is_not_clear_is_refused_with_the_choices(models, tmp_path):
    _, b, ema, _ = models
    torch.save({"student": b, "teacher": ema}, tmp_path / "entries.pt")
    with pytest.raises(DataError, match="several state dicts, student, teacher: choose one with --key"):
        load_checkpoint(tmp_path / "entries.pt")
    torch.save({**under("student.", b), **under("teacher.", ema)}, tmp_path / "prefixes.pt")
    with pytest.raises(MergeError, match=r"under 'student\.', 'teacher\.': choose one with --prefix"):
        open_checkpoints([tmp_path / "prefixes.pt"], model=mlp())


def test_other_tensors_are_left_out_only_where_the_model_is_known(models, tmp_path):
    a, b, _, _ = models
    save_file(a, tmp_path / "a.safetensors")
    save_file({**b, "extra": torch.ones(2)}, tmp_path / "b.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(MergeError, match=r"tensors too many: 1 \(extra \(2,\)\)"):
        open_checkpoints(paths)
    assert "left out extra, which the model does not have" in " ".join(open_checkpoints(paths, model=mlp()).notes)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.back = nn.Embedding(12, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.embedding(tokens).mean(1)
        return self.head(hidden + self.back(self.inner(hidden).relu()))


@pytest.mark.parametrize("kept", [("embedding.weight", "head.weight"), ("head.weight", "embedding.weight")])
def test_any_tied_key_supplies_the_tensor(kept, tmp_path):
    """Two files hold one of the two keys each, a third one both; the result has the first one's keys."""
    tokens = torch.randint(0, 12, (2, 5))
    a, b, spec = pair(Tied, tokens)
    files = []
    for name, state, left_out in (("a", a, kept[1]), ("b", b, kept[0])):
        save_file({key: tensor.clone() for key, tensor in state.items() if key != left_out}, path := tmp_path / name)
        files.append(path)
    torch.save(b, tmp_path / "c.pt")
    files.append(tmp_path / "c.pt")
    model = Tied()
    for chosen in ({"spec": spec}, {"model": model}):
        opened = open_checkpoints(files, **chosen)
        merge_files(opened, tmp_path / "m.safetensors", spec, force=True)
        merged = load_file(tmp_path / "m.safetensors")
        assert merged.keys() == a.keys() - {kept[1]}
        assert all(torch.allclose(tensor, a[key], atol=1e-6) for key, tensor in merged.items())
    with pytest.raises(MergeError, match="missing"):
        open_checkpoints(files[:2])


def test_files_of_save_model_and_inputs_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    a, b = Tied(), Tied()
    for name, model in (("a", a), ("b", b)):
        save_model(model, f"{name}.safetensors")
    options = ["--model", "tests.files.test_wrappers:Tied", "--input", "tokens:int64:2,5", "-o", "m.safetensors"]
    assert main(["merge", "a.safetensors", "b.safetensors", *options]) == 0
    load_model(a, "m.safetensors")
    assert a.head.weight is a.embedding.weight


def test_a_spec_keeps_what_is_tied(tmp_path):
    _, _, spec = pair(Tied, torch.randint(0, 12, (2, 5)))
    assert spec.tied == (("embedding.weight", "head.weight"),)
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json").tied == spec.tied
    assert spec.rename({"head.weight": "out"}).tied == (("embedding.weight", "out"),)


def test_tied_keys_that_are_not_one_tensor_are_refused(tmp_path):
    a, _, _ = pair(Tied, torch.randint(0, 12, (2, 5)))
    save_file({key: tensor for key, tensor in a.items() if key != "head.weight"}, tmp_path / "a.safetensors")
    save_file({**a, "head.weight": a["head.weight"] + 1}, tmp_path / "b.safetensors")
    with pytest.raises(MergeError, match="differ, which are one tensor in"):
        open_checkpoints([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], model=Tied())


@pytest.mark.slow
def test_a_resnet_18_in_every_wrapper(tmp_path, monkeypatch, capsys):
    from torchvision.models import resnet18

    monkeypatch.chdir(tmp_path)
    a, b, _ = pair(lambda: resnet18(num_classes=4), (1, 3, 64, 64))
    model = resnet18(num_classes=4).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.func.functional_call(model, a, (image,))
    save_file(a, "a.safetensors")
    options = ["--model", "torchvision:resnet18", "--input", "1,3,64,64", "-o", "m.safetensors", "--force"]
    for name, (write, note) in WRAPPERS.items():
        if name == "an optimiser beside" or name == "AveragedModel":  # they make an MLP
            continue
        torch.save(write(b, {key: 2 * tensor for key, tensor in b.items()}), "b.pt")
        assert main(["merge", "a.safetensors", "b.pt", *options]) == 0, name
        assert note in capsys.readouterr().err, name
        found = torch.func.functional_call(model, load_file("m.safetensors"), (image,))
        assert torch.allclose(found, expected, atol=1e-4), name
