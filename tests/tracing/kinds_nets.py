"""Nets of kinds that people have and that a tracer gets wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Hidden(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between: Callable[..., Tensor], width: int = 6, after: int | None = None) -> None:
        super().__init__()
        self.a, self.h, self.between = nn.Linear(4, width), nn.Linear(after or width, 2), between

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.h(self.between(self.a(x), *more))


class Buffered(nn.Module):
    """Whole numbers of the state dict along the hidden units: a mask of units, one of weights, weights of 8 bits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.h = kind, nn.Linear(4, 6), nn.Linear(6, 2)
        shape, dtype = {"units": ((6,), torch.bool), "weights": ((6, 4), torch.bool), "int8": ((2, 6), torch.int8)}[
            kind
        ]
        self.register_buffer("given", torch.ones(shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "weights":
            return self.h(functional.linear(x, self.a.weight * self.given, self.a.bias).relu())
        y = self.a(x).relu()
        return self.h(y * self.given) if self.kind == "units" else functional.linear(y, self.given.to(x.dtype) * 0.1)


class Numbered(nn.Module):
    """A buffer whose values number units holds these in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Linear(4, 6), nn.Linear(3, 2)
        self.register_buffer("chosen", torch.tensor([1, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.a(x).index_select(1, self.chosen))


class Constant(nn.Module):
    """Ones that the state dict does not hold: another instance may have others."""

    def __init__(self, attribute: bool) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        if attribute:
            self.ones = torch.ones(6)
        else:
            self.register_buffer("ones", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.b(self.a(x) * self.ones).relu())


class Interactions(nn.Module):
    """Products of embeddings with one another, stacked (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.t = nn.Embedding(7, 4), nn.Embedding(9, 4), nn.Linear(4, 1)

    def forward(self, i: Tensor, j: Tensor) -> Tensor:
        z = torch.stack([self.u(i), self.v(j)], 1)
        return self.t(torch.bmm(z, z.transpose(1, 2)).flatten(1))


class Messages(nn.Module):
    """Messages along edges are added up at the nodes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.h = kind, nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            message = layer(x)[edges[0]]
            zeros = torch.zeros(x.shape[0], message.shape[1], dtype=message.dtype)
            if self.kind == "index_add":
                x = zeros.index_add_(0, edges[1], message).relu()
            elif self.kind == "scatter":
                x = zeros.scatter_add(0, edges[1][:, None].expand_as(message), message).relu()
            else:
                x = zeros.index_put((edges[1],), message, accumulate=True).relu()
        return self.h(x)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.EmbeddingBag(9, 6), nn.Linear(6, 2)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        return self.h(self.e(indices, offsets))


class Radial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.h = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.exp(-(torch.cdist(x, self.c) ** 2)))


class Sampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.h(functional.grid_sample(self.a(x), grid, align_corners=False))


class Chosen(nn.Module):
    """Experts that are picked by top-k: each has a hidden order of its own."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.i, self.g, self.h = nn.Linear(5, 6), nn.Linear(6, experts), nn.Linear(6, 2)
        self.w1, self.w2 = nn.Parameter(torch.randn(experts, 6, 7)), nn.Parameter(torch.randn(experts, 7, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        value, index = self.g(x).topk(2, -1)
        y = torch.einsum("bd,bkdf->bkf", x, self.w1[index]).relu()
        return self.h(x + (value.softmax(-1)[..., None] * torch.einsum("bkf,bkfd->bkd", y, self.w2[index])).sum(1))


class Routed(nn.Module):
    """Every expert reads the rows that are sent to it, however many these are."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g, self.h = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.up, self.down = (nn.ModuleList(nn.Linear(*size) for _ in range(3)) for size in ((6, 4), (4, 6)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        top, y = self.g(x).argmax(-1), torch.zeros_like(x)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows = (top == number).nonzero().squeeze(1)
            y.index_add_(0, rows, down(up(x[rows]).relu()))
        return self.h(x + y)


class Packed(nn.Module):
    def __init__(self, layer: type[nn.RNNBase], is_sorted: bool, unpacked: bool) -> None:
        super().__init__()
        self.is_sorted, self.unpacked = is_sorted, unpacked
        self.e, self.r, self.h = nn.Embedding(11, 5), layer(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.e(x), lengths, batch_first=True, enforce_sorted=self.is_sorted)
        out, last = self.r(packed)
        if self.unpacked:
            return self.h(nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].sum(1))
        return self.h((last[0] if isinstance(last, tuple) else last)[-1])


class Shuffled(nn.Module):
    """Grouped convolution, shuffle, grouped convolution, shortcut (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.g, self.g2 = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = functional.channel_shuffle(self.g(x).relu(), 2)
        return self.h((x + self.g2(y)).relu())


class Flow(nn.Module):
    """A differential equation: time is made of a unit's shape, and a gate is one unit out of the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.f, self.h = nn.Linear(4, 6), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        return self.h(x + self.f(torch.cat([x, torch.ones_like(x[:, :1]) * 0.5], 1)).tanh())


class Table(nn.Module):
    """Of a table of positions an example reads the first ones only: the others are nobody's to move."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.table = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.h((self.a(x) + self.table[: x.shape[1]]).relu())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6, dtype=torch.cfloat))
        self.v = nn.Parameter(torch.randn(6, 2, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(torch.abs(x.to(torch.cfloat) @ self.w)).to(torch.cfloat) @ self.v).real
