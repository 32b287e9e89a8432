"""The page for people who merge checkpoints: its commands run as written, from its beginning to its end."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "merging-checkpoints.md").read_text()
NETS = "from torch import nn\n\n\ndef mlp():\n    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))\n"


def section(title):
    return PAGE.partition(f"## {title}")[2].partition("\n## ")[0]


def commands(text):
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from (shlex.split(line)[1:] for line in block.splitlines())


def run_all(title, capsys):
    found = list(commands(section(title)))
    assert found
    for command in found:
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_folders(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (code,) = re.findall(r"```python\n# my_data.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_data.py").write_text(code)
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0)
    for name in "AB":
        transformers.GPT2LMHeadModel(config).save_pretrained(name)
    run_all("Folders", capsys)
    transformers.GPT2LMHeadModel.from_pretrained("OUT")
    assert (tmp_path / "between" / "barrier.svg").exists()


def test_files_of_training_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_nets.py").write_text(NETS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    state = model.state_dict()
    spec = PermutationSpec.trace(model, torch.zeros(2, 8))
    other = Permutation.random(spec, torch.Generator().manual_seed(0)).apply(state)
    for name, one in (("1.ckpt", state), ("2.pt", other)):
        copies = {prefix + key: tensor for prefix in ("model.", "model_ema.") for key, tensor in one.items()}
        torch.save({"state_dict": copies, "hyper_parameters": {"lr": 0.1}}, f"run{name}")
    for name, one in (("1", state), ("2", other)):
        torch.save({"state_dict": one, "state_dict_ema": one}, f"timm{name}.pt")
    run_all("Files of training scripts", capsys)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        command[command.index("-o") + 1] for command in commands(section("Files of training scripts"))
    }
