"""Small nets, one or more for each rule, with the symmetries that they have on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def members(*shapes: tuple[int, ...]) -> float:
    """log10 of the number of members of groups of these shapes."""
    return sum(math.prod(shape[:-1]) * math.lgamma(shape[-1] + 1) for shape in shapes) / math.log(10)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.projection = body, projection

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + (x if self.projection is None else self.projection(x))


class Branches(nn.Module):
    """Branches of the same input, joined by a function."""

    def __init__(self, join: Callable[..., Tensor], *branches: nn.Module) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*(branch(x) for branch in self.branches))


class Attention(nn.Module):
    """Self-attention with grouped queries, projections packed or apart, by matmul or by the fused operator."""

    def __init__(self, width: int, heads: int, kv_heads: int, size: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size, self.kind = heads, kv_heads, size, kind
        self.q, self.k, self.v = (nn.Linear(width, n * size) for n in (heads, kv_heads, kv_heads))
        self.o = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = self.q(x).view(batch, time, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.kv_heads, self.size)).transpose(1, 2) for f in (self.k, self.v))
        repeats = self.heads // self.kv_heads
        if self.kind == "gqa":
            out = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            if self.kind == "interleave":
                k, v = (one.repeat_interleave(repeats, dim=1) for one in (k, v))
            else:
                k, v = (
                    one[:, :, None].expand(-1, -1, repeats, -1, -1).reshape(batch, self.heads, time, -1)
                    for one in (k, v)
                )
            weights = torch.softmax(torch.einsum("bhtd,bhsd->bhts", q, k), dim=-1)
            out = weights @ v
        return self.o(out.transpose(1, 2).flatten(2))


class PackedAttention(nn.Module):
    def __init__(self, width: int, heads: int, order: str) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x)
        if self.order == "chunk":
            q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in qkv.chunk(3, dim=-1))
        elif self.order == "unbind":
            q, k, v = qkv.reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:  # the heads outside, as GPT-NeoX does
            q, k, v = qkv.view(batch, time, self.heads, -1).transpose(1, 2).split(width // self.heads, dim=-1)
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, time, width))


class LastStep(nn.Module):
    """The last output of a recurrent layer, classified."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class SideBySide(nn.Module):
    """Two recurrent layers of a size, both from the same first state: their own zeros, or zeros for both."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(3, 4, batch_first=True), nn.GRU(3, 4, batch_first=True)
        self.shared, self.head = shared, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, len(x), 4, dtype=x.dtype) if self.shared else None
        return self.head(torch.cat((self.first(x, state)[0], self.second(x, state)[0]), -1))


class Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, 0])
        out = self.cell(x[:, 1], state)
        return self.head(out if isinstance(out, Tensor) else out[0])


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1))))
        return self.head(x * torch.sigmoid(scale)).mean((2, 3))


class Tied(nn.Module):
    """Embedding and output head share one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + functional.gelu(self.body(x)))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.to(torch.float32) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Net(NamedTuple):
    """A net, its input, and log10 of its number of symmetries on paper."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    log10: float


def mlp(*middle: nn.Module, width: int = 6, after: int | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), *middle, nn.Linear(after or width, 2))


def conv_net(*middle: nn.Module, width: int = 6, after: int | None = None) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(2, width, 3), *middle, pool, nn.Linear(after or width, 3))


VECTOR, IMAGE, SEQUENCE = (4, 3), (2, 2, 8, 8), (2, 5, 3)

GROUPED, PACKED = members((2,), (2, 3), (2, 4), (2, 4)), members((3,), (3, 4), (3, 4))
NETS: dict[str, Net] = {
    "linear": Net(lambda: mlp(nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), width=6, after=5), VECTOR, members((6,), (5,))),
    "layer-norm": Net(lambda: mlp(nn.LayerNorm(6), nn.GELU()), VECTOR, members((6,))),
    "rms-norm": Net(lambda: mlp(RMSNorm(6), nn.RMSNorm(6)), VECTOR, members((6,))),
    "prelu": Net(lambda: mlp(nn.PReLU(6)), VECTOR, members((6,))),
    "glu": Net(lambda: mlp(nn.GLU(), width=10, after=5), VECTOR, members((5,))),
    "swiglu": Net(Gated, VECTOR, members((6,))),
    "residual": Net(lambda: mlp(Residual(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))), VECTOR, members((6,))),
    "projection": Net(
        lambda: mlp(Residual(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(6, 5)), after=5),
        VECTOR,
        members((6,), (5,)),
    ),
    "bilinear": Net(
        lambda: nn.Sequential(Branches(nn.Bilinear(4, 5, 6), nn.Linear(3, 4), nn.Linear(3, 5)), nn.Linear(6, 2)),
        VECTOR,
        members((4,), (5,), (6,)),
    ),
    "cat": Net(
        lambda: nn.Sequential(
            Branches(lambda a, b: torch.cat((a, b), -1), nn.Linear(3, 4), nn.Linear(3, 5)), nn.Linear(9, 2)
        ),
        VECTOR,
        members((4,), (5,)),
    ),
    "stack": Net(
        lambda: nn.Sequential(
            Branches(lambda a, b: torch.stack((a, b), 1).flatten(1), nn.Linear(3, 4), nn.Linear(3, 4)), nn.Linear(8, 2)
        ),
        VECTOR,
        members((4,), (4,)),
    ),
    "max-of-branches": Net(
        lambda: nn.Sequential(Branches(torch.maximum, nn.Linear(3, 4), nn.Linear(3, 4)), nn.Linear(4, 2)),
        VECTOR,
        members((4,)),
    ),
    "view-undone": Net(
        lambda: mlp(Apply(lambda x: functional.relu(x.view(4, 2, 3)).view(4, 6))), VECTOR, members((6,))
    ),
    "norm-in-blocks": Net(
        lambda: mlp(Apply(lambda x: x.unflatten(-1, (2, 3)).softmax(-1).flatten(1))), VECTOR, members((2,), (2, 3))
    ),
    "sum-over-blocks": Net(
        lambda: mlp(Apply(lambda x: x.unflatten(-1, (2, 3)).logsumexp(1)), after=3), VECTOR, members((3,), (3, 2))
    ),
    "interleaved-slices": Net(lambda: mlp(Apply(lambda x: x[:, ::2] * x[:, 1::2]), after=3), VECTOR, members((3,))),
    "sorted": Net(lambda: mlp(Apply(lambda x: x.sort(-1).values)), VECTOR, members((6,))),
    "places-of-sorted": Net(lambda: mlp(Apply(lambda x: x.gather(-1, x.argsort(-1)))), VECTOR, 0.0),
    "cumulative": Net(lambda: mlp(Apply(lambda x: x.cumsum(-1))), VECTOR, 0.0),
    "flipped": Net(lambda: mlp(Apply(lambda x: x - 2 * x.flip(-1))), VECTOR, 0.0),
    "pad": Net(lambda: mlp(Apply(lambda x: functional.pad(x, (1, 2))), after=9), VECTOR, members((6,), (2,))),
    "repeat": Net(lambda: mlp(Apply(lambda x: x.repeat(1, 2)), after=12), VECTOR, members((6,), (6, 2))),
    "conv-flatten": Net(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        IMAGE,
        members((4,)),
    ),
    "batch-norm": Net(lambda: conv_net(nn.BatchNorm2d(6), nn.Hardswish()), IMAGE, members((6,))),
    "instance-norm": Net(lambda: conv_net(nn.InstanceNorm2d(6, affine=True), nn.ReLU()), IMAGE, members((6,))),
    "group-norm": Net(lambda: conv_net(nn.GroupNorm(2, 6), nn.ReLU()), IMAGE, members((2,), (2, 3))),
    "layer-like-group-norm": Net(lambda: conv_net(nn.GroupNorm(1, 6)), IMAGE, members((6,))),
    "depthwise": Net(lambda: conv_net(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU()), IMAGE, members((6,))),
    "grouped": Net(lambda: conv_net(nn.Conv2d(6, 8, 3, groups=2), after=8), IMAGE, members((2,), (2, 3), (2, 4))),
    "transposed": Net(lambda: conv_net(nn.ConvTranspose2d(6, 5, 3), nn.ReLU(), after=5), IMAGE, members((6,), (5,))),
    "grouped-transposed": Net(
        lambda: conv_net(nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), after=4),
        IMAGE,
        members((2,), (2, 3), (2, 2)),
    ),
    "conv1d": Net(
        lambda: nn.Sequential(nn.Conv1d(5, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
        SEQUENCE,
        members((4,)),
    ),
    "conv3d": Net(
        lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(4, 2)),
        (2, 1, 3, 3, 3),
        members((4,)),
    ),
    "squeeze-excite": Net(SqueezeExcite, IMAGE, members((6,), (3,))),
    "upsample": Net(lambda: conv_net(nn.Upsample(scale_factor=2), nn.Conv2d(6, 6, 3)), IMAGE, members((6,), (6,))),
    "pixel-shuffle": Net(lambda: conv_net(nn.PixelShuffle(2), width=8, after=2), IMAGE, members((2,), (2, 4))),
    "channel-shuffle": Net(
        lambda: conv_net(nn.Conv2d(6, 6, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(6, 6, 1, groups=3)),
        IMAGE,
        members((2,), (2, 3), (3,), (3, 2)),
    ),
    "dense": Net(
        lambda: conv_net(
            Branches(lambda a, b: torch.cat((a, b), 1), nn.Identity(), nn.Conv2d(6, 4, 3, padding=1)),
            nn.BatchNorm2d(10),
            after=10,
        ),
        IMAGE,
        members((6,), (4,)),
    ),
    "attention": Net(lambda: Attention(3, 4, 4, 5, "expand"), SEQUENCE, members((4,), (4, 5), (4, 5))),
    "grouped-query": Net(lambda: Attention(3, 6, 2, 4, "expand"), SEQUENCE, GROUPED),
    "grouped-query-fused": Net(lambda: Attention(3, 6, 2, 4, "gqa"), SEQUENCE, GROUPED),
    "grouped-query-interleave": Net(lambda: Attention(3, 6, 2, 4, "interleave"), SEQUENCE, GROUPED),
    "packed-chunk": Net(lambda: PackedAttention(12, 3, "chunk"), (2, 5, 12), PACKED),
    "packed-unbind": Net(lambda: PackedAttention(12, 3, "unbind"), (2, 5, 12), PACKED),
    "packed-heads-first": Net(lambda: PackedAttention(12, 3, "heads-first"), (2, 5, 12), PACKED),
    "encoder-layer": Net(
        lambda: mlp(nn.TransformerEncoderLayer(12, 3, 7, batch_first=True), width=12),
        SEQUENCE,
        members((12,), (7,), (3,), (3, 4), (3, 4)),
    ),
    "rnn": Net(lambda: LastStep(nn.RNN(3, 4, batch_first=True), 4), SEQUENCE, members((4,))),
    "lstm": Net(
        lambda: LastStep(nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True), 8), SEQUENCE, members(*[(4,)] * 4)
    ),
    "lstm-projected": Net(
        lambda: LastStep(nn.LSTM(3, 5, proj_size=4, batch_first=True), 4), SEQUENCE, members((5,), (4,))
    ),
    "gru": Net(lambda: LastStep(nn.GRU(3, 4, 2, batch_first=True), 4), SEQUENCE, members((4,), (4,))),
    "grus-from-zeros": Net(lambda: SideBySide(False), SEQUENCE, members((4,), (4,))),
    "grus-from-shared-zeros": Net(lambda: SideBySide(True), SEQUENCE, members((4,), (4,))),
    "gru-cell": Net(lambda: Cell(nn.GRUCell(3, 4)), SEQUENCE, members((4,))),
    "lstm-cell": Net(lambda: Cell(nn.LSTMCell(3, 4)), SEQUENCE, members((4,))),
}
