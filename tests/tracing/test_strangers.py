"""Models that nobody here made, of optional packages: traced, checked, and a planted member of each is found."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fedrebasin import CoverageWarning, MergeMany, Permutation, WeightMatching
from fedrebasin.tracing import trace

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
SHARED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {**SHARED, "num_local_experts": 4}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
DISTIL: dict[str, Any] = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64}
IMAGES: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
IMAGES.pop("vocab_size")
#: (class, configuration, its options, levels of nesting)
TRANSFORMERS = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", SHARED, 2),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", EXPERTS, 2),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT, 2),
    "BERT": ("BertForSequenceClassification", "BertConfig", SIZES, 2),
    "DistilBERT": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL, 2),
    "Mamba": ("MambaForCausalLM", "MambaConfig", MAMBA, 1),
}


def found_again(model: nn.Module, inputs: Any, depth: int, seeds: int = 3) -> None:
    """The spec covers the model, and copies in other orders are brought into one."""
    spec = trace(model, inputs)
    assert spec.checked
    assert spec.coverage > 0.95
    assert max(len(spec.shape(name)) for name in spec.groups) == depth
    generator = torch.Generator().manual_seed(0)
    a = {
        key: tensor.detach() + 0.05 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in model.state_dict().items()
    }
    members = [Permutation.random(spec, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    for member in members:
        found = WeightMatching()(spec, reference=a, candidate=member.apply(a))
        assert found.permutation == member.inverse()
    merged = MergeMany()(spec, [member.apply(a) for member in members])
    orders = [one.permutation.compose(member) for one, member in zip(merged.alignments, members, strict=True)]
    assert all(order == orders[0] for order in orders)


def of_transformers(name: str, configuration: str, options: dict[str, Any]) -> nn.Module:
    """Small, with random weights, in training mode as a client has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, configuration)(**options))
    return model.train()


TOKENS = torch.randint(1, 60, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    model, config, options, depth = TRANSFORMERS[name]
    built = of_transformers(model, config, options)
    found_again(built, {"input_ids": TOKENS}, depth)
    assert getattr(built.config, "use_cache", None) in (None, True)  # as it was
    assert built.training


def test_what_a_loader_gives_will_do() -> None:
    """Tokens alone, with a mask, with labels (the loss is an output then): one spec, and it is proven with any."""
    options = {**GPT, "pad_token_id": 0}
    model = of_transformers("GPT2ForSequenceClassification", "GPT2Config", options)
    mask = torch.ones_like(TOKENS)
    batches = [TOKENS, {"input_ids": TOKENS, "attention_mask": mask}]
    batches.append({**batches[1], "labels": torch.tensor([0, 1])})
    first, *others = (trace(model, batch) for batch in batches)
    for other in others:
        assert {axis for group in other.groups.values() for axis in group.axes} == {
            axis for group in first.groups.values() for axis in group.axes
        }
    for batch in batches:
        first.check(model, batch)


def test_images_by_position() -> None:
    model = of_transformers("ViTForImageClassification", "ViTConfig", IMAGES)
    found_again(model, torch.randn(2, 3, 16, 16), 2)


def test_encoder_and_decoder() -> None:
    """What the encoder gives is an output of T5's: its stream moves where only the logits are asked for."""
    options = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = of_transformers("T5ForConditionalGeneration", "T5Config", {**options, "decoder_start_token_id": 0})
    inputs = {"input_ids": TOKENS, "labels": TOKENS}
    spec = trace(model, inputs)
    assert spec.checked
    assert 0.7 < spec.coverage < 0.9
    logits = trace(model, inputs, forward=lambda model, **inputs: model(**inputs).logits)
    assert logits.coverage > 0.95
    assert logits.log10_symmetries > spec.log10_symmetries


@pytest.mark.parametrize(
    ("name", "options", "depth"),
    [
        ("test_vit", {}, 2),
        ("test_resnet", {}, 1),
        ("test_convnext", {}, 1),
        ("convit_tiny", {"depth": 2, "local_up_to_layer": 1}, 2),
    ],
)
def test_timm(name: str, options: dict[str, int], depth: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    found_again(model, torch.randn(1, *model.default_cfg["input_size"]), depth)


def test_lightning_module_whose_forward_is_the_encoder_only() -> None:
    lightning = pytest.importorskip("lightning")

    class Autoencoder(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
            self.decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(x)

    class Trained(Autoencoder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, _ = batch
            x = x.view(x.size(0), -1)
            loss = nn.functional.mse_loss(self.decoder(self.encoder(x)), x)
            self.log("train_loss", loss)
            return loss

    model = Autoencoder()
    with pytest.warns(CoverageWarning, match="decoder"):
        spec = trace(model, torch.zeros(2, 8))
    assert {row.reason for row in spec.unpermuted if row.key == "decoder.0.weight"} == {"the model does not read it"}
    with pytest.warns(CoverageWarning, match="decoder"):
        MergeMany()(spec, [model.state_dict(), Autoencoder().state_dict()])
    labels = torch.zeros(2, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageWarning)
        flat, images = (trace(Trained(), (x, labels)) for x in (torch.randn(2, 8), torch.randn(2, 1, 2, 4)))
    assert [sorted(group.size for group in spec.groups.values()) for spec in (flat, images)] == [[16, 16], [3, 16, 16]]


def test_peft_adapters_have_the_order_of_their_rank() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False))
    spec = trace(model.eval(), torch.zeros(2, 8))
    assert spec.checked
    assert sorted(group.size for group in spec.groups.values()) == [4, 4, 16]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"r": 4}),
        ("LoraConfig", {"r": 4, "use_dora": True}),
        ("AdaLoraConfig", {"init_r": 4, "total_step": 10}),
        ("LoHaConfig", {"r": 4}),
    ],
)
def test_the_keys_that_peft_sends_are_the_specs(kind: str, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    base = of_transformers("BertForSequenceClassification", "BertConfig", SIZES)
    adapted = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, getattr(peft, kind)(**adapted))
    spec = trace(model, {"input_ids": TOKENS, "labels": torch.tensor([0, 1])})
    assert spec.checked
    assert list(spec.shapes) == list(model.state_dict())
    assert spec.rename_like(model.state_dict()) == spec
    sent = peft.get_peft_model_state_dict(model)
    shapes = spec.rename_like(sent).shapes
    assert {key: shapes[key] for key in sent} == {key: tuple(tensor.shape) for key, tensor in sent.items()}
    assert len(sent) < len(shapes)
