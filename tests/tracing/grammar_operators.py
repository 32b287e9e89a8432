"""The grammar's operators on tensors: each production draws lines for a growing program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tests.tracing.grammar import Builder

Draw = Callable[[Builder], None]
ACTIVATIONS = ("F.relu({})", "torch.tanh({})", "F.gelu({})", "F.silu({})", "F.softplus({})", "{}.sigmoid() * {}")


@dataclass(frozen=True)
class Production:
    draw: Draw
    weight: float


PRODUCTIONS: list[Production] = []


def production(weight: float = 1.0) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        PRODUCTIONS.append(Production(draw, weight))
        return draw

    return register


def activation_of(b: Builder, value: str) -> str:
    return b.rng.choice(ACTIVATIONS).format(value, value)


def activated(b: Builder, value: str) -> str:
    """The value after an activation."""
    return b.emit(activation_of(b, value))[0]


def maybe_activated(b: Builder, value: str) -> str:
    return activated(b, value) if b.rng.random() < 0.6 else value


@production(2)
def activation(b: Builder) -> None:
    activated(b, b.pick())


@production(3)
def linear(b: Builder) -> None:
    v = b.pick()
    out, size = b.size(), b.shape(v)[-1]
    bias = f", {b.param(out)}" if b.rng.random() < 0.6 else ""
    maybe_activated(b, *b.emit(f"F.linear({v}, {b.param(out, size)}{bias})"))


@production()
def scale(b: Builder) -> None:
    v = b.pick()
    sizes = b.shape(v)
    kind = b.rng.choice(["param", "param", "param", "buffer", "constant", "hidden"])
    dim = b.dim(v)
    shape = sizes[1:] if b.rng.random() < 0.3 else (sizes[dim], *[1] * (len(sizes) - dim - 1))
    other = b.param(*shape) if kind == "param" else b.member(f"{kind}({', '.join(map(str, shape))})")
    b.emit(b.rng.choice(["{} * {}", "{} + {}", "torch.maximum({}, {})", "torch.where({0} > 0, {0}, {1})"]).format(v, other))


@production()
def prelu(b: Builder) -> None:
    v = b.pick()
    b.emit(f"F.prelu({v}, {b.param(b.shape(v)[1])})")


@production()
def masked(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    sizes = b.shape(v)
    kind = b.rng.choice(["ones", "mask", "int8"])
    m = b.member(f"{kind}({', '.join(map(str, (sizes[dim], *[1] * (len(sizes) - dim - 1))))})")
    forms = ["{} * {}", "{} * {}"] if kind == "int8" else ["{} * {}", "{}.masked_fill({}, 0.3)", "torch.where({1}, {0}, -{0})"]
    b.emit(b.rng.choice(forms).format(v, m))


@production(0.7)
def masked_weight(b: Builder) -> None:
    v = b.pick()
    out, size = b.size(), b.shape(v)[-1]
    kind = b.rng.choice(["ones", "mask", "int8", "buffer"])
    m = b.member(f"{kind}({out}, {size})")
    weight = f"{b.param(out, size)} * {m}" if b.rng.random() < 0.6 else f"{m}.double()"
    activated(b, *b.emit(f"F.linear({v}, {weight})"))


@production(2)
def reshape(b: Builder) -> None:
    v = b.pick()
    sizes = b.shape(v)
    flat = math.prod(sizes[1:])
    kind = b.rng.choice(["flatten", "regroup", "unflatten", "merge"])
    if kind == "flatten":
        b.emit(f"{v}.flatten(1)")
    elif kind == "regroup":
        first = b.rng.choice([n for n in range(2, flat) if flat % n == 0] or [1])
        b.emit(f"{v}.reshape({sizes[0]}, {first}, {flat // first})")
    elif kind == "unflatten":
        dim = b.dim(v, smallest=4)
        first = b.rng.choice([n for n in range(2, sizes[dim]) if sizes[dim] % n == 0] or [1])
        b.emit(f"{v}.unflatten({dim}, ({first}, {sizes[dim] // first}))")
    else:
        dim = b.rng.randrange(1, len(sizes) - 1) if len(sizes) > 2 else 1
        b.emit(f"{v}.flatten({dim}, {dim + 1})")


@production(2)
def permute(b: Builder) -> None:
    v = b.pick(3, 4, 5)
    dims = list(range(1, len(b.shape(v))))
    b.rng.shuffle(dims)
    turned = f"{v}.permute(0, {', '.join(map(str, dims))})"
    b.emit(turned if b.rng.random() < 0.6 else f"{turned}.flatten(1, 2)")


@production(1.5)
def join(b: Builder) -> None:
    v = b.pick(2, 3, 4)
    others = {b.pick(like=v, last=False) for _ in range(b.rng.choice([1, 1, 2]))} - {v}
    if not others:
        return
    values = ", ".join([v, *sorted(others)])
    kind = b.rng.choice(["stack", "cat"])
    if kind == "stack":
        b.emit(f"torch.stack(({values}), {b.rng.randint(1, len(b.shape(v)))})")
    else:
        b.emit(f"torch.cat(({values}), {b.rng.randint(1, len(b.shape(v)) - 1)})")


@production()
def grow(b: Builder) -> None:
    """A dense layer: what was there, and new features behind."""
    v = b.pick()
    n, size = b.size(), b.shape(v)[-1]
    new = b.rng.choice([f"F.linear({v}, {b.param(n, size)}).tanh()", f"torch.ones_like({v}[..., :1])"])
    b.emit(f"torch.cat(({v}, {new}), -1)")


@production(1.5)
def residual(b: Builder) -> None:
    v = b.pick()
    size = b.shape(v)[-1]
    branch = b.pick(like=v, last=False) if b.rng.random() < 0.4 else f"torch.tanh(F.linear({v}, {b.param(size, size)}))"
    b.emit(f"{v} + {branch}")


@production()
def product(b: Builder) -> None:
    v = b.pick()
    b.emit(b.rng.choice(["{} * {}", "torch.maximum({}, {})", "{} * {}.sigmoid()"]).format(v, b.pick(like=v, last=False)))


@production(1.5)
def pieces(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    size = b.shape(v)[dim]
    kind = b.rng.choice(["chunk", "unbind", "split", "split"])
    if kind == "chunk" and size % 2 == 0:
        first, second = b.emit(f"{v}.chunk(2, {dim})", 2)
        b.emit(b.rng.choice(["{} * {}.sigmoid()", "{} - {}.tanh()", "torch.cat(({}, {}.tanh()), 1)"]).format(first, second))
    elif kind == "unbind" and len(b.shape(v)) > 2:
        names = b.emit(f"{v}.unbind({dim})", size)
        b.emit(b.rng.choice(["{1} * {0}.sigmoid()", "{0}.tanh() + {1}", "{1}"]).format(*names))
    else:
        first = b.rng.randrange(1, size)
        names = b.emit(f"{v}.split(({first}, {size - first}), {dim})", 2)
        if b.rng.random() < 0.6:
            b.emit(f"torch.cat(({names[1]}, {activation_of(b, names[0])}), {dim})")


@production(1.5)
def part(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    size = b.shape(v)[dim]
    start = b.rng.randrange(size)
    stop = b.rng.randint(start + 1, size)
    step = b.rng.choice([1, 1, 2])
    before = ":, " * dim
    kinds = [f"{v}[{before}{start}:{stop}:{step}]", f"{v}[{before}{start}::2]", f"{v}.narrow({dim}, {start}, {stop - start})"]
    if len(b.shape(v)) > 2:
        kinds.append(f"{v}.select({dim}, {start})")
    b.emit(b.rng.choice(kinds))


@production()
def gate(b: Builder) -> None:
    """All units times one of them."""
    v = b.pick()
    dim = b.dim(v)
    unit = b.rng.randrange(b.shape(v)[dim])
    b.emit(f"{v} * {v}[{':, ' * dim}{unit}:{unit + 1}].sigmoid()")


@production(1.5)
def contraction(b: Builder) -> None:
    v = b.pick(3, 4)
    other = b.pick(like=v, last=False) if b.rng.random() < 0.6 else v
    sizes = b.shape(v)
    if len(sizes) == 3:
        n = b.size()
        kinds = [
            f"torch.bmm({v}, {other}.transpose(1, 2))",
            f"{v}.transpose(1, 2) @ {other}",
            f"torch.einsum('bij,bkj->bik', {v}, {other})",
            f"torch.einsum('bij,bij->bi', {v}, {other})",
            f"torch.einsum('bij,jk->bik', {v}, {b.param(sizes[2], n)})",
            f"torch.einsum('bij,ijk->bik', {v}, {b.param(sizes[1], sizes[2], n)})",
            f"torch.einsum('bij,ki->bkj', {v}, {b.param(n, sizes[1])})",
            f"{b.param(n, sizes[1])} @ {v}",
            f"torch.cdist({v}, {other})",
        ]
    else:
        kinds = [
            f"{v} @ {other}.transpose(-1, -2)",
            f"torch.einsum('bijk,bljk->bil', {v}, {other})",
            f"torch.einsum('bijk,bijl->bikl', {v}, {other})",
            f"{v} @ {b.param(sizes[-1], b.size())}",
        ]
    b.emit(b.rng.choice(kinds))


@production(1.5)
def reduce(b: Builder) -> None:
    v = b.pick(3, 4, 5)
    dim = b.dim(v, smallest=1)
    b.emit(f"{v}.{b.rng.choice(['mean', 'sum', 'amax', 'logsumexp', 'var', 'norm'])}({dim})" if b.rng.random() < 0.95 else f"{v}.flatten(1).mean(-1, keepdim=True)")


@production(1.5)
def along(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    kinds = [
        f"{v}.softmax({dim})",
        f"{v}.log_softmax({dim})",
        f"{v}.cumsum({dim})",
        f"{v} + {v}.flip({dim})",
        f"{v}.sort({dim}).values",
        f"{v}.roll(1, {dim}) + {v}",
        f"{v} / (1 + {v}.norm(dim={dim}, keepdim=True))",
        f"{v} - {v}.mean({dim}, keepdim=True)",
        f"{v}.topk(2, {dim}).values",
        f"{v}.diff(dim={dim})",
        f"F.normalize({v}, dim={dim})",
        f"F.glu({v}, {dim})",
        f"torch.tril({v})",
        f"{v}.rot90(1, (-2, -1))",
    ]
    b.emit(b.rng.choice(kinds))


@production(2)
def index(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    sizes = b.shape(v)
    size, n = sizes[dim], b.size()
    before = ":, " * dim
    several = b.rng.choice(["indices", "places"])
    chosen = [b.rng.randrange(size) for _ in range(n)]
    shuffled = b.rng.sample(range(size), size)
    picked = b.rng.choice([f"torch.tensor({chosen})", f"torch.tensor({shuffled})", b.member(f"{several}({size}, {n})")])
    full = list(sizes)
    full[dim] = n
    table = b.member(f"{several}({size}, {', '.join(map(str, full))})")
    ids = b.member(f"{several}({n}, {size})")
    expanded = b.member(f"{several}({n}, {', '.join(map(str, sizes))})")
    kinds = [
        f"{v}[{before}{chosen}]",
        f"{v}.index_select({dim}, {picked})",
        f"{v}.index_select({dim}, {picked})",
        f"{v}.gather({dim}, {table})",
        f"{v}.gather({dim}, {v}.argsort({dim}))",
        f"torch.zeros({tuple(full)}, dtype={v}.dtype).index_add({dim}, {ids}, {v})",
        f"torch.zeros({tuple(full)}, dtype={v}.dtype).scatter_add({dim}, {expanded}, {v})",
        f"{v}.index_add({dim}, torch.tensor({chosen}), {v}[{before}:1].repeat_interleave({n}, {dim}))",
        f"{v}.index_fill({dim}, torch.tensor([{chosen[0]}]), 0.5)",
    ]
    b.emit(b.rng.choice(kinds))


@production()
def copies(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v, smallest=1)
    sizes = b.shape(v)
    repeats = [2 if at == dim else 1 for at in range(len(sizes))]
    expanded = [2 if at == dim else -1 for at in range(len(sizes) + 1)]
    kinds = [
        f"{v}.repeat({', '.join(map(str, repeats))})",
        f"{v}.repeat_interleave(2, {dim})",
        f"{v}.unsqueeze({dim}).expand({', '.join(map(str, expanded))})",
        f"{v}.unsqueeze({dim}).expand({', '.join(map(str, expanded))}).flatten({dim}, {dim + 1})",
        f"{v}.unsqueeze({dim}) * {v}.unsqueeze({dim + 1})",
        f"F.pad({v}, ({b.rng.randint(0, 2)}, {b.rng.randint(0, 2)}))",
    ]
    b.emit(b.rng.choice(kinds))


@production()
def written(b: Builder) -> None:
    """Entries that are overwritten in place, by value or by position."""
    v = b.pick()
    dim = b.dim(v)
    unit = b.rng.randrange(b.shape(v)[dim])
    kinds = [
        f"{v}.clone().masked_fill_({v} < 0, 0.5)",
        f"put({v}, {v} < 0, 0.0)",
        f"{v}.clone().clamp_(min=-1)",
        f"{v}.select_scatter({v}.select({dim}, 0) * 2, {dim}, {unit})",
        f"{v}.slice_scatter({v}.narrow({dim}, 0, 1) * 2, {dim}, {unit}, {unit + 1})",
    ]
    b.emit(b.rng.choice(kinds))


@production(0.7)
def unfolded(b: Builder) -> None:
    v = b.pick()
    b.emit(f"{v}.unfold({b.dim(v)}, 2, {b.rng.choice([1, 1, 2])})")


@production(0.5)
def unread(b: Builder) -> None:
    """A statistic of some units that nothing reads, and a value that all reads start from again."""
    v = b.pick()
    b.emit(f"{v}[:, :1].tanh()")
    activated(b, v)


@production(0.5)
def as_complex(b: Builder) -> None:
    v = b.pick()
    size, n = b.shape(v)[-1], b.size()
    kinds = [
        f"torch.view_as_real({v}.to(torch.complex128) @ {b.member(f'complex_param({size}, {n})')}).flatten(-2)",
        f"({v}.to(torch.complex128) @ {b.member(f'complex_param({size}, {n})')}).abs()",
        f"torch.fft.rfft({v}).abs()",
    ]
    b.emit(b.rng.choice(kinds))
