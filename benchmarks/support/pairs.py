"""Trained networks for the matching benchmark, kept in a cache folder between runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedrebasin.models import make_model
from fedrebasin.simulations import Dataset, load_dataset

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is trained, with AdamW at 1e-3 and weight decay 1e-4.

    Args:
        model: a name of the model registry.
        width: its width.
        steps: of training.
        batch: samples in one step.
        pool: how many pixels become one, which makes convolutional training affordable on a processor.
    """

    model: str
    width: float
    steps: int
    batch: int = 128
    pool: int = 1

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.model}-{self.width:g}-{self.steps}-{self.batch}-{self.pool}"


RECIPES = {
    "MLP-512": Recipe("mlp", 512, 3752),
    "MLP-2048": Recipe("mlp", 2048, 469),
    "ResNet-20 x4": Recipe("resnet20", 4, 200, batch=32, pool=2),
    "VGG-11": Recipe("vgg11", 1, 200, batch=64),
}


def fashion_mnist(data_dir: str) -> Dataset:
    return load_dataset("fashion-mnist", data_dir)


def inputs_of(recipe: Recipe, images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, recipe.pool) if recipe.pool > 1 else images


def new_model(recipe: Recipe, data: Dataset, seed: int) -> torch.nn.Module:
    return make_model(
        recipe.model, inputs_of(recipe, data.train_inputs[:1]).shape[1:], data.classes, recipe.width, seed
    )


def trained(recipe: Recipe, data: Dataset, seed: int, cache: Path) -> State:
    """The state dict of one trained network, from the cache where it has been trained before."""
    path = cache / f"{recipe.name}-{seed}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    model = new_model(recipe, data, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    batches = DataLoader(
        TensorDataset(data.train_inputs, data.train_labels),
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    step = 0
    while step < recipe.steps:
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs_of(recipe, images)), labels).backward()
            optimizer.step()
            step += 1
            if step == recipe.steps:
                break
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.state_dict()
