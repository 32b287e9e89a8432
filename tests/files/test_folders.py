"""Folders as hubs lay them out: models that libraries made, in other orders of their units, merge into themselves."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedrebasin import Permutation
from fedrebasin.cli import main
from fedrebasin.cli.inputs import named_model, spec_of

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {**SIZES, "vocab_size": 64}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
#: The class, its configuration, whether weights are tied, dtype, size of a shard, what may differ afterwards.
KINDS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, torch.float32, "40KB", 1e-5),
    "bert": ("BertForSequenceClassification", "BertConfig", TOKENS, torch.float32, "1GB", 1e-5),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**SIZES, "image_size": 16, "patch_size": 8, "num_labels": 5},
        torch.float32,
        "1GB",
        1e-5,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TOKENS, "num_key_value_heads": 2}, torch.bfloat16, "50KB", 1e-1),
}


def spread(model, seed=0):
    """The model with weights that differ from one another; libraries begin with ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def outputs(model, example):
    with torch.no_grad():
        return model(**example).logits.float()


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """``A`` and ``B``, the same function with other units, written by the library; how to load, and inputs."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)

    def make(kind):
        architecture, configuration, options, dtype, shard, _ = KINDS[kind]
        make = getattr(transformers, architecture)
        torch.manual_seed(0)
        model = spread(make(getattr(transformers, configuration)(**options))).to(dtype)
        model.save_pretrained("A", max_shard_size=shard)
        named = named_model("transformers:A")
        spec = spec_of(named, [])
        moved = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(model.state_dict())
        other = make(model.config)
        other.to(dtype).load_state_dict(moved)
        other.save_pretrained("B", max_shard_size=shard)
        return make, named.example(), model

    return make


def shards_of(folder):
    return {name for name in os.listdir(folder) if name.endswith(".safetensors")}


@pytest.mark.parametrize("kind", KINDS)
def test_two_copies_of_a_model_merge_into_it_and_load_where_they_came_from(kind, planted, capsys):
    make, example, model = planted(kind)
    tolerance = KINDS[kind][-1]
    given = outputs(make.from_pretrained("A"), example)
    assert torch.allclose(given, outputs(make.from_pretrained("B"), example), atol=tolerance)
    assert main(["merge", "A", "B", "-o", "OUT"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "every number of the result is finite" in printed.out
    merged, report = make.from_pretrained("OUT", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(outputs(merged, example), given, atol=tolerance)
    assert shards_of("OUT") == shards_of("A")
    assert {"config.json", "README.md"} <= set(os.listdir("OUT"))
    assert next(merged.parameters()).dtype == next(model.parameters()).dtype
    # Averaged as they are, they are another function: the merge has done something.
    assert main(["merge", "A", "B", "-o", "MEAN", "--method", "average"]) == 0
    mean = outputs(make.from_pretrained("MEAN"), example)
    assert (mean - given).abs().max() > 3 * tolerance


def test_a_convnext_of_timm_from_its_folder(tmp_path, monkeypatch, capsys):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = spread(timm.create_model("test_convnext", num_classes=7))
    named = named_model("timm:test_convnext,num_classes=7")
    image = torch.randn(named.example().shape, generator=torch.Generator().manual_seed(0))
    moved = Permutation.random(spec_of(named, []), torch.Generator().manual_seed(1)).apply(model.state_dict())
    other = timm.create_model("test_convnext", num_classes=7)
    other.load_state_dict(moved)
    for folder, one in (("A", model), ("B", other)):
        timm.models.save_for_hf(one, folder, safe_serialization=True)
    assert main(["merge", "A", "B", "-o", "OUT"]) == 0, capsys.readouterr().err
    merged = timm.create_model("test_convnext", num_classes=7, checkpoint_path="OUT/model.safetensors").eval()
    with torch.no_grad():
        assert torch.allclose(merged(image), model(image), atol=1e-4)
        assert torch.allclose(other.eval()(image), model(image), atol=1e-4)


def tokens():
    """Training and test data of a language: every token is followed by the next one."""
    generator = torch.Generator().manual_seed(0)
    texts = (torch.arange(9) + torch.randint(0, 64, (40, 1), generator=generator)) % 64
    return (texts[:, :-1], texts[:, 1:]), (texts[:, :-1], texts[:, 1:])


def test_perplexity_before_and_after_and_the_line_between_folders(planted, capsys):
    planted("gpt2")
    data = ["--data", "tests.files.test_folders:tokens", "--examples", "20"]
    assert main(["merge", "A", "B", "-o", "OUT", *data]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    card = (Path("OUT") / "README.md").read_text()
    assert "Perplexity:" in card
    assert "the checkpoints averaged as they are" in card
    assert main(["barrier", "A", "B", *data, "--points", "3", "--json"]) == 0, capsys.readouterr().err
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert curves["after"]["barriers"]["git-re-basin"] == pytest.approx(0, abs=1e-4)
    assert curves["after"]["losses"] != pytest.approx(curves["before"]["losses"], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 10**9},
            "config.json has n_layer 1000000000",
        ),
        ({"model_type": "gpt2", "architectures": ["os.system"]}, "transformers has no os.system"),
        ({"model_type": "gpt2", "architectures": ["NoSuchModel"]}, "transformers has no NoSuchModel"),
        (
            {"model_type": "of_my_own", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.C"}},
            "model transformers:A",
        ),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": "x"}, "model transformers:A"),
        ({"architecture": "no_such_net"}, "timm has no model 'no_such_net'"),
    ],
)
def test_a_configuration_makes_nothing_but_models_that_are_known(config, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    Path("A").mkdir()
    Path("A/config.json").write_text(json.dumps(config))
    Path("A/mine.py").write_text("open('was-run', 'w')")
    save_file({"x": torch.ones(2)}, "A/model.safetensors")
    assert main(["merge", "A", "A", "-o", "OUT"]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert message in complaint[-1]
    assert not Path("was-run").exists()
    assert not Path("A/was-run").exists()
