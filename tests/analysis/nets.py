"""Small networks whose measures are known on paper."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedrebasin import PermutationSpec

State = dict[str, Tensor]


def make_mlp(width: int = 8, inputs: int = 5, classes: int = 3, depth: int = 2, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    size = inputs
    for _ in range(depth):
        layers += [nn.Linear(size, width, bias=bias), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes, bias=bias))


def make_linear(sizes: tuple[int, ...] = (5, 6, 4)) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))


class Twice(nn.Module):
    """One layer that runs twice, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(torch.relu(self.inner(inputs)))))


class Positioned(nn.Module):
    """A transformer that owns its position embeddings itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(1, 5, 8))
        self.embed = nn.Linear(3, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens) + self.positions).mean(1))


def make_cnn(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 3),
    )


def random_state(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randn(tensor.shape, generator=generator, dtype=dtype) * 0.5 + ("running_var" in key) * 2).abs()
        if "running_var" in key
        else torch.randn(tensor.shape, generator=generator, dtype=dtype)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in model.state_dict().items()
    }


def make_batches(seed: int = 0, shape: tuple[int, ...] = (5,), count: int = 3, classes: int = 3) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(7, *shape, generator=generator, dtype=torch.float64),
            torch.randint(classes, (7,), generator=generator),
        )
        for _ in range(count)
    ]


def labelled_by(model: nn.Module, state: State, batches: list) -> list:
    """The same inputs with the model's own predictions as labels, so that leaving the model costs loss."""
    return [(inputs, functional_call(model, state, (inputs,)).argmax(1)) for inputs, _ in batches]


def make_spec(state: State) -> PermutationSpec:
    """Of ``make_mlp``: one group for each hidden layer."""
    weights = [key for key in state if key.endswith("weight")]
    axes: dict[str, tuple[str | None, ...]] = {}
    for position, key in enumerate(weights):
        before = f"P{position - 1}" if position else None
        after = f"P{position}" if position + 1 < len(weights) else None
        axes[key] = (after, before)
        bias = key.replace("weight", "bias")
        if bias in state:
            axes[bias] = (after,)
    return PermutationSpec.from_axes(axes, like=state)


def disjoint_pair(seed: int = 0, units: int = 3) -> tuple[nn.Sequential, State, State]:
    """Two bias-free nets of 2 x units hidden units: A uses the first half of every layer, B the second half."""
    model = make_mlp(2 * units, inputs=4, depth=3, bias=False)
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    keys = list(model.state_dict())
    for position, key in enumerate(keys):
        shape = model.state_dict()[key].shape
        mask = torch.ones(shape, dtype=torch.float64)
        if position:
            mask[:, units:] = 0
        if position + 1 < len(keys):
            mask[units:] = 0
        a[key] = torch.randn(shape, generator=generator, dtype=torch.float64) * mask
        other = mask if position + 1 == len(keys) else mask.flip(0)
        other = other.flip(1) if position else other
        b[key] = torch.randn(shape, generator=generator, dtype=torch.float64) * other
    return model, a, b
