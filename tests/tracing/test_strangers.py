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
SHARED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "use_cache": False}
EXPERTS: dict[str, Any] = {**SHARED, "num_local_experts": 4}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "use_cache": False}
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "use_cache": False}
#: (class, configuration, its options, levels of nesting)
TRANSFORMERS = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", SHARED, 2),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", EXPERTS, 2),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT, 2),
    "BERT": ("BertForSequenceClassification", "BertConfig", SIZES, 2),
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


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, config, options, depth = TRANSFORMERS[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    found_again(built, {"input_ids": torch.randint(0, 64, (2, 7))}, depth)


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

    model = Autoencoder()
    spec = trace(model, torch.zeros(2, 8))
    assert {row.reason for row in spec.unpermuted if row.key == "decoder.0.weight"} == {"the model does not read it"}
    with pytest.warns(CoverageWarning, match="decoder"):
        MergeMany()(spec, [model.state_dict(), Autoencoder().state_dict()])


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
