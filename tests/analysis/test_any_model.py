"""The measures on the papers' architectures, on attention, and on a GPU where there is one."""

import pytest
import torch
from torch import nn

from fedrebasin import Permutation, PermutationSpec, WeightMatching
from fedrebasin.analysis import (
    activation_spectra,
    active_overlap,
    commutativity,
    feature_connectivity,
    layers_of,
    reciprocal_orthogonality,
    stitching,
    unit_activity,
    weak_additivity,
    weight_spectra,
)
from fedrebasin.models import make_model


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


MODELS = {
    "mlp": (lambda: make_model("mlp", (1, 8, 8), 4, 8, seed=0), (1, 8, 8)),
    "vgg11-bn": (lambda: make_model("vgg11-bn", (1, 8, 8), 4, 0.05, seed=0), (1, 8, 8)),
    "resnet20": (lambda: make_model("resnet20", (1, 8, 8), 4, 0.125, seed=0), (1, 8, 8)),
    "resnet20-bn": (lambda: make_model("resnet20-bn", (1, 8, 8), 4, 0.125, seed=0), (1, 8, 8)),
    "attention": (Attention, (5, 3)),
}


def setting(name, device="cpu"):
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().to(device)
    generator = torch.Generator().manual_seed(1)
    a = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    b = {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).abs().to(tensor)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in a.items()
    }
    batches = [(torch.randn(6, *shape, generator=generator), torch.arange(6) % 4) for _ in range(2)]
    return model, a, b, batches


def measures(model, a, b, batches):
    return [
        feature_connectivity(model, a, b, batches, [0.3]),
        feature_connectivity(model, a, b, batches, law="exponential", where="before"),
        commutativity(model, a, b, batches),
        reciprocal_orthogonality(model, a, b, batches),
        weak_additivity(model, a, b, batches),
        active_overlap(model, a, b, batches),
        unit_activity(model, a, batches),
        tuple(weight_spectra(model, a).items()),
        tuple(activation_spectra(model, a, batches).items()),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_measure_runs_and_leaves_no_trace(name):
    model, a, b, batches = setting(name)
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = measures(model, a, b, batches)
    assert all(found)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    for layer in found[0]:
        assert -1 <= layer.cosine.mean <= 1
        assert layer.norm.mean > 0


@pytest.mark.parametrize("name", ["mlp", "vgg11-bn", "resnet20"])
def test_an_aligned_copy_agrees_in_every_layer(name):
    model, a, _, batches = setting(name)
    shape = batches[0][0].shape[1:]
    spec = PermutationSpec.trace(model.eval(), torch.zeros(2, *shape))
    assert layers_of(model, spec)
    copy = Permutation.random(spec, torch.Generator().manual_seed(3)).apply(a)
    aligned = WeightMatching()(spec, reference=a, candidate=copy).apply(copy)
    own, after = (feature_connectivity(model, a, state, batches) for state in (copy, aligned))
    assert min(layer.baseline.mean for layer in after) == pytest.approx(1, abs=1e-5)
    assert min(layer.baseline.mean for layer in own) < 0.99


def test_whole_blocks_of_a_residual_net_can_be_stitched():
    model, a, b, batches = setting("resnet20")
    blocks = [f"blocks.{k}" for k in range(9)]
    found = stitching(model, a, b, batches, blocks)
    assert list(found) == blocks
    assert all(score.labels == 12 for score in found.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_gives_the_same_numbers(name):
    on_cpu = measures(*setting(name))[0]
    model, a, b, batches = setting(name, "cuda")
    for cpu, gpu in zip(on_cpu, measures(model, a, b, batches)[0], strict=True):
        assert gpu.cosine.mean == pytest.approx(cpu.cosine.mean, abs=1e-3)
