"""Small nets that use their weights in every way that is observed, with what is to be seen in them, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Net(nn.Module):
    """Parameters of given shapes and a function of them, as a module without modules."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self._run = forward
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Attention(nn.Module):
    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.cross, self.attention = cross, nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1) + 1 if self.cross else x
        return self.attention(x, other, other)[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))


class Case(NamedTuple):
    """A net, the shape of its input (integers below 7 where it is of one dimension) and the uses that are seen.

    Attributes:
        uses: of each weight in the order of execution how it lies: ``rows`` (outputs first), ``columns`` (inputs
            first), ``convolution``, ``transposed`` or ``embedding``; a star: not affine, for it lies otherwise or is
            tied.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    uses: str


CASES = {
    "module": Case(lambda: nn.Linear(4, 3), (5, 4), "weight rows"),
    "sequence": Case(lambda: nn.Linear(4, 3), (2, 5, 4), "weight rows"),
    "without-bias": Case(lambda: nn.Linear(4, 3, bias=False), (5, 4), "weight rows"),
    "function": Case(lambda: Net(lambda n, x: functional.linear(x, n.a, n.b), a=(3, 4), b=(3,)), (5, 4), "a rows"),
    "addmm": Case(lambda: Net(lambda n, x: torch.addmm(n.b, x, n.a.t()), a=(3, 4), b=(3,)), (5, 4), "a rows"),
    "matmul": Case(lambda: Net(lambda n, x: x @ n.a.T, a=(3, 4)), (2, 5, 4), "a rows"),
    "einsum": Case(lambda: Net(lambda n, x: torch.einsum("bi,oi->bo", x, n.a), a=(3, 4)), (5, 4), "a rows"),
    "inputs-first": Case(lambda: Net(lambda n, x: x @ n.a, a=(4, 3)), (5, 4), "a columns*"),
    "square": Case(lambda: Net(lambda n, x: x @ n.a @ n.a.T, a=(4, 4)), (5, 4), "a columns* a rows"),
    "from-the-left": Case(lambda: Net(lambda n, x: (n.a @ x.T).T, a=(3, 4)), (5, 4), "a rows*"),
    "part": Case(lambda: Net(lambda n, x: functional.linear(x, n.a[2:5]), a=(6, 4)), (5, 4), "a rows"),
    "twice": Case(Twice, (5, 4), "inner.weight rows inner.weight rows head.weight rows"),
    "conv1d": Case(lambda: nn.Conv1d(2, 3, 2, stride=2), (2, 2, 6), "weight convolution"),
    "conv2d": Case(lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2), (2, 2, 4, 4), "weight convolution"),
    "depthwise": Case(lambda: nn.Conv2d(3, 3, 2, groups=3, dilation=2), (2, 3, 4, 4), "weight convolution"),
    "conv3d": Case(lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3), "weight convolution"),
    "transposed": Case(lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3), "weight transposed*"),
    "embedding": Case(lambda: nn.Embedding(7, 4), (5,), "weight embedding*"),
    "tied": Case(Tied, (5,), "embedding.weight embedding* head.weight rows*"),
    "attention": Case(
        lambda: Attention(False), (2, 5, 4), "attention.in_proj_weight rows attention.out_proj.weight rows"
    ),
    "cross-attention": Case(
        lambda: Attention(True),
        (2, 5, 4),
        "attention.in_proj_weight rows attention.in_proj_weight rows attention.out_proj.weight rows",
    ),
    "cell": Case(lambda: nn.GRUCell(4, 3), (5, 4), "weight_ih rows weight_hh rows"),
}


def random_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Random numbers in float64, those that are not negative where they are variances; tied weights differ."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in model.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.is_floating_point():
            state[key] = values.abs() + 0.1 if key.endswith("var") else values
        else:
            state[key] = tensor.clone()
    return state


def inputs_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random inputs of a shape; tokens where it has one dimension."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.randint(7, (3, *shape), generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
