"""Pairs of checkpoints for the tests of commands."""

import torch
from safetensors.torch import save_file
from torch import nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.models import MLP


def mlp():
    return MLP(64, width=24, depth=2)


def convolutions():
    """Two convolutions with BatchNorm for the digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip


def pair(make, shape, noise=0.0, seed=0):
    """A model's state dict, one of the same model with other units and noise, and the spec."""
    torch.manual_seed(seed)
    model = make().eval()
    spec = PermutationSpec.trace(model, shape if isinstance(shape, torch.Tensor) else torch.zeros(shape))
    a = model.state_dict()
    b = {k: t + noise * torch.randn_like(t) if t.is_floating_point() else t for k, t in a.items()}
    return a, Permutation.random(spec, torch.Generator().manual_seed(seed)).apply(b), spec


def write_mlps(folder, noise=0.0):
    """``a.safetensors`` and ``b.pt``, the second one as DistributedDataParallel in a training script leaves it."""
    a, b, _ = pair(mlp, (2, 64), noise)
    save_file(a, folder / "a.safetensors")
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": tensor for key, tensor in b.items()}}, folder / "b.pt")
    return a, b
