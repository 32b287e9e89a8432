"""The smallest network of every family of the zoos, shrunk where a configuration allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

MOST = 30_000_000  # parameters
Case = Callable[[], tuple[nn.Module, Any]]

# Smallest of their families as they are; AlexNet (61e6) and VGG (133e6) cannot be made small.
TORCHVISION = (
    "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1",
)  # fmt: skip


def from_torchvision() -> Iterator[tuple[str, Case]]:
    import torchvision.models as tv
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    def named(name: str) -> tuple[nn.Module, Any]:
        slow_start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        size = 299 if name == "inception_v3" else 224
        return tv.get_model(name, weights=None, **slow_start).eval(), torch.randn(1, 3, size, size)

    def shrunk(make: Callable[[], nn.Module]) -> tuple[nn.Module, Any]:
        return make().eval(), torch.randn(1, 3, 64, 64)

    for name in TORCHVISION:
        yield name, partial(named, name)
    swin = partial(tv.SwinTransformer, [4, 4], 32, [1, 2], [2, 4], [4, 4], num_classes=10)
    once = [1, 1, 1, 1]
    small: dict[str, Callable[[], nn.Module]] = {
        "convnext": partial(tv.ConvNeXt, [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10),
        "densenet": partial(tv.DenseNet, 8, (2, 3, 3, 2), 16),
        "maxvit": partial(tv.MaxVit, (64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=10),
        "mobilenet_v2": partial(tv.mobilenet_v2, width_mult=0.35),
        "resnet": partial(tv.ResNet, tv.resnet.BasicBlock, once),
        "resnext": partial(tv.ResNet, tv.resnet.Bottleneck, once, groups=8, width_per_group=8),
        "swin": swin,
        "swin_v2": partial(swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
        "vit": partial(tv.VisionTransformer, 64, 16, 2, 4, 48, 96),
        "wide_resnet": partial(tv.ResNet, tv.resnet.Bottleneck, once, width_per_group=128),
    }
    for name, make in small.items():
        yield f"{name}, shrunk", partial(shrunk, make)


def from_transformers() -> Iterator[tuple[str, Case]]:
    import transformers as t

    text = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"intermediate_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    causal = {**text, "use_cache": False}
    grouped = {**causal, "num_attention_heads": 6, "num_key_value_heads": 2}
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    vision |= {"intermediate_size": 96}
    tokens, image, sound = torch.randint(5, 90, (2, 7)), torch.randn(2, 3, 32, 32), torch.randn(2, 8, 30)
    ids = {"input_ids": tokens}
    both = {**ids, "decoder_input_ids": tokens}
    small = {"vocab_size": 99, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "use_cache": False}
    small |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1}
    small |= {"eos_token_id": 2, "decoder_start_token_id": 1, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    experts = {**grouped, "num_local_experts": 4, "num_experts_per_tok": 2}
    clip_text = {**text, "eos_token_id": 98, "bos_token_id": 97}
    found: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
        "ALBERT": (lambda: t.AlbertModel(t.AlbertConfig(**text, embedding_size=16)), ids),
        "BART": (lambda: t.BartForConditionalGeneration(t.BartConfig(**small)), both),
        "BERT": (lambda: t.BertForSequenceClassification(t.BertConfig(**text)), ids),
        "BLOOM": (
            lambda: t.BloomForCausalLM(
                t.BloomConfig(vocab_size=99, hidden_size=48, n_layer=2, n_head=4, use_cache=False)
            ),
            ids,
        ),
        "CLIP": (
            lambda: t.CLIPModel(t.CLIPConfig(text_config=clip_text, vision_config=vision)),
            {**ids, "pixel_values": image},
        ),
        "ConvNeXt": (
            lambda: t.ConvNextForImageClassification(
                t.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
            ),
            {"pixel_values": image},
        ),
        "DeBERTa-v2": (lambda: t.DebertaV2Model(t.DebertaV2Config(**text)), ids),
        "DeiT": (lambda: t.DeiTForImageClassification(t.DeiTConfig(**vision)), {"pixel_values": image}),
        "DINOv2": (lambda: t.Dinov2ForImageClassification(t.Dinov2Config(**vision)), {"pixel_values": image}),
        "DistilBERT": (
            lambda: t.DistilBertForSequenceClassification(
                t.DistilBertConfig(vocab_size=99, dim=48, n_layers=2, n_heads=4, hidden_dim=96)
            ),
            ids,
        ),
        "ELECTRA": (lambda: t.ElectraModel(t.ElectraConfig(**text, embedding_size=16)), ids),
        "Falcon": (lambda: t.FalconForCausalLM(t.FalconConfig(**causal)), ids),
        "Gemma": (lambda: t.GemmaForCausalLM(t.GemmaConfig(**grouped, head_dim=8)), ids),
        "GPT-2": (
            lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=48, n_layer=2, n_head=4, use_cache=False)),
            ids,
        ),
        "GPT-Neo": (
            lambda: t.GPTNeoForCausalLM(
                t.GPTNeoConfig(
                    vocab_size=99, hidden_size=48, num_layers=2, num_heads=4, use_cache=False,
                    attention_types=[[["global", "local"], 1]],
                )
            ),
            ids,
        ),
        "GPT-NeoX": (lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**causal)), ids),
        "Llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)), ids),
        "Mamba": (
            lambda: t.MambaForCausalLM(
                t.MambaConfig(vocab_size=99, hidden_size=48, num_hidden_layers=2, state_size=8, use_cache=False)
            ),
            ids,
        ),
        "Mistral": (lambda: t.MistralForCausalLM(t.MistralConfig(**grouped)), ids),
        "Mixtral": (lambda: t.MixtralForCausalLM(t.MixtralConfig(**experts)), ids),
        "MobileViT": (
            lambda: t.MobileViTForImageClassification(
                t.MobileViTConfig(
                    image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 24, 32, 48]
                )
            ),
            {"pixel_values": torch.randn(1, 3, 64, 64)},
        ),
        "OPT": (
            lambda: t.OPTForCausalLM(t.OPTConfig(**{**causal, "ffn_dim": 96, "word_embed_proj_dim": 48})),
            ids,
        ),
        "Phi": (lambda: t.PhiForCausalLM(t.PhiConfig(**causal)), ids),
        "Phi-3": (lambda: t.Phi3ForCausalLM(t.Phi3Config(**grouped)), ids),
        "Qwen2": (lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)), ids),
        "Qwen3": (lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, head_dim=8)), ids),
        "ResNet": (
            lambda: t.ResNetForImageClassification(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1])
            ),
            {"pixel_values": torch.randn(1, 3, 64, 64)},
        ),
        "RoBERTa": (lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**text)), ids),
        "Swin": (
            lambda: t.SwinForImageClassification(
                t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
            ),
            {"pixel_values": image},
        ),
        "T5": (
            lambda: t.T5ForConditionalGeneration(
                t.T5Config(vocab_size=99, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4, use_cache=False)
            ),
            both,
        ),
        "ViT": (lambda: t.ViTForImageClassification(t.ViTConfig(**vision)), {"pixel_values": image}),
        "Whisper": (
            lambda: t.WhisperForConditionalGeneration(
                t.WhisperConfig(**small, num_mel_bins=8, max_source_positions=15, max_target_positions=20)
            ),
            {"input_features": sound, "decoder_input_ids": tokens},
        ),
    }  # fmt: skip
    for name, (build, inputs) in found.items():
        yield name, lambda build=build, inputs=inputs: (build().eval(), inputs)  # type: ignore[misc]


def from_timm() -> Iterator[tuple[str, Case]]:
    """Of every module of timm, which are its families, the smallest model; shrunk where it takes minutes as it is."""
    import timm
    from timm.models import list_modules

    def named(name: str) -> tuple[nn.Module, Any]:
        model = timm.create_model(name).eval()
        return model, torch.randn(1, *model.default_cfg["input_size"])

    def shrunk(make: Callable[[], nn.Module]) -> tuple[nn.Module, Any]:
        return make().eval(), torch.randn(1, 3, 64, 64)

    small = _shrunk_timm()
    for module in list_modules():
        if module in small:
            yield f"{module}, shrunk", partial(shrunk, small[module])
            continue
        sizes = {}
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        smallest = min(sizes, key=lambda name: sizes[name], default=None)
        if smallest is not None and sizes[smallest] <= MOST:
            yield f"{module}: {smallest}", partial(named, smallest)


def _shrunk_timm() -> dict[str, Callable[[], nn.Module]]:
    """Few, narrow blocks, but every kind that the family's smallest model has; images of 64 x 64."""
    import timm.models as tm

    image: dict[str, Any] = {"img_size": 64, "num_classes": 10}
    four: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "num_classes": 10, "stages": (1, 1, 2, 1)}
    swin: dict[str, Any] = {**image, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    multiscale = tm.mvitv2.MultiScaleVitCfg(depths=(1, 1, 2, 1), embed_dim=16, num_heads=2)
    return {
        "davit": partial(
            tm.davit.DaVit, depths=(1, 2), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, num_classes=10
        ),
        "focalnet": partial(
            tm.focalnet.FocalNet, embed_dim=16, depths=(1, 2), focal_levels=(2, 2), focal_windows=(3, 3), num_classes=10
        ),
        "hiera": partial(tm.hiera.Hiera, img_size=(64, 64), **four),
        "hieradet_sam2": partial(
            tm.hieradet_sam2.HieraDet, window_spec=(8, 4, 4, 2), global_att_blocks=(3,), **four
        ),
        "mvitv2": partial(tm.mvitv2.MultiScaleVit, multiscale, img_size=(64, 64), num_classes=10),
        "rdnet": partial(
            tm.rdnet.RDNet, num_init_features=16, growth_rates=(8, 12, 12, 16), num_blocks_list=(2, 2, 2, 2),
            block_type=("Block", "Block", "BlockESE", "BlockESE"), is_downsample_block=(None, True, False, True),
            num_classes=10,
        ),
        "sequencer": partial(
            tm.sequencer.Sequencer2d, layers=(1, 2, 1), patch_sizes=(8, 2, 1), embed_dims=(16, 24, 24),
            hidden_sizes=(6, 8, 8), mlp_ratios=(3.0, 3.0, 3.0), **image,
        ),
        "swin_transformer": partial(tm.swin_transformer.SwinTransformer, **swin),
        "swin_transformer_v2": partial(tm.swin_transformer_v2.SwinTransformerV2, **swin),
        "swin_transformer_v2_cr": partial(
            tm.swin_transformer_v2_cr.SwinTransformerV2Cr, **{**swin, "img_size": (64, 64)}
        ),
        "tnt": partial(
            tm.tnt.TNT, patch_size=16, embed_dim=48, inner_dim=16, depth=2, num_heads_inner=4, num_heads_outer=4,
            legacy=True, **image,
        ),
        "twins": partial(
            tm.twins.Twins, embed_dims=(16, 32), num_heads=(2, 4), mlp_ratios=(4, 4), depths=(2, 2), sr_ratios=(4, 2),
            wss=(4, 4), **image,
        ),
        "volo": partial(
            tm.volo.VOLO, (1, 1, 2, 1), embed_dims=(16, 32, 32, 32), num_heads=(2, 4, 4, 4), **image
        ),
    }  # fmt: skip


ZOOS = {"torchvision": from_torchvision, "transformers": from_transformers, "timm": from_timm}
