"""Small nets, data for them, and ways to split it over clients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4


class ConvNet(nn.Module):
    """Every kind of weight that has Gram matrices: plain, strided, dilated, grouped and flattened."""

    def __init__(self, norm: bool = True, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, channels, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels, 12, 3, stride=2, dilation=2, padding=2, groups=2)
        self.norm2 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.hidden = nn.Linear(12 * 3 * 3, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(images))))))
        return self.head(torch.relu(self.hidden(features.flatten(1))))


class AttentionNet(nn.Module):
    """Self-attention and cross-attention with packed projections, and an encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        encoded = self.encoder(tokens)
        return self.head(self.attention(encoded.flip(1), tokens, tokens)[0].mean(1))


def mlp(width: int = 12, inputs: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def random_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random parameters of the usual size, running statistics of no particular one, in float64."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = tensor.clone()
            continue
        fan = tensor[0].numel() if tensor.dim() > 1 else 4
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * fan**-0.5
        state[key] = values.abs() + 0.5 if key.endswith("running_var") else values
    return state


def examples(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64) + 0.3
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def batches(data: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(tensor.split(size) for tensor in data), strict=True)) if len(data[0]) else []


def split(data: tuple[Tensor, Tensor], clients: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """An uneven split; with many clients some are empty."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data[0]), generator=generator)
    cuts = torch.randint(len(order) + 1, (clients - 1,), generator=generator).sort().values
    return [(data[0][part], data[1][part]) for part in order.tensor_split(cuts.tolist())]
