"""The grammar's operators on values of any shape: arithmetic, contractions, reductions, masks."""

from __future__ import annotations

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
    maybe_activated(b, *b.emit(f"F.linear({v}, {b.matrix(out, size)}{bias})"))


@production()
def scale(b: Builder) -> None:
    v = b.pick()
    sizes = b.shape(v)
    kind = b.rng.choice(["param", "param", "param", "buffer", "constant", "hidden"])
    dim = b.dim(v)
    shape = sizes[1:] if b.rng.random() < 0.3 else (sizes[dim], *[1] * (len(sizes) - dim - 1))
    other = b.param(*shape) if kind == "param" else b.member(f"{kind}({', '.join(map(str, shape))})")
    b.emit(
        b.rng.choice(["{} * {}", "{} + {}", "torch.maximum({}, {})", "torch.where({0} > 0, {0}, {1})"]).format(v, other)
    )


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
    forms = (
        ["{} * {}", "{} * {}"]
        if kind == "int8"
        else ["{} * {}", "{}.masked_fill({}, 0.3)", "torch.where({1}, {0}, -{0})"]
    )
    b.emit(b.rng.choice(forms).format(v, m))


@production(0.7)
def masked_weight(b: Builder) -> None:
    v = b.pick()
    out, size = b.size(), b.shape(v)[-1]
    kind = b.rng.choice(["ones", "mask", "int8", "buffer"])
    m = b.member(f"{kind}({out}, {size})")
    weight = f"{b.param(out, size)} * {m}" if b.rng.random() < 0.6 else f"{m}.double()"
    activated(b, *b.emit(f"F.linear({v}, {weight})"))


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
    other = b.pick(like=v, last=False) if b.rng.random() < 0.4 else f"F.linear({v}, {b.matrix(size, size)}).tanh()"
    b.emit(f"{v} + {other}")


@production()
def product(b: Builder) -> None:
    v = b.pick()
    b.emit(
        b.rng.choice(["{} * {}", "torch.maximum({}, {})", "{} * {}.sigmoid()"]).format(v, b.pick(like=v, last=False))
    )


@production()
def interactions(b: Builder) -> None:
    """The products of stacked vectors with each other, all or those above the diagonal (DLRM)."""
    v = b.pick(2)
    other = b.pick(like=v, last=False)
    size = b.shape(v)[-1]
    third = f", F.linear({v}, {b.param(size, size)})" if b.rng.random() < 0.5 else ""
    (z,) = b.emit(f"torch.stack(({v}, {other}{third}), 1)")
    (z,) = b.emit(b.rng.choice(["torch.bmm({0}, {0}.transpose(1, 2))", "{0} @ {0}.mT", "{0}.mT @ {0}"]).format(z))
    if b.rng.random() < 0.5:
        b.emit(f"{z}[:, [0, 0, 1], [0, 1, 1]]")


@production(0.7)
def excited(b: Builder) -> None:
    """Channels scaled by what is in all of them (squeeze and excitation)."""
    v = b.pick(3, 4)
    channels, rank = b.shape(v)[1], len(b.shape(v)) - 2
    n = b.size()
    squeezed = f"{v}.flatten(2).mean(2)"
    (e,) = b.emit(f"F.linear(F.relu(F.linear({squeezed}, {b.param(n, channels)})), {b.param(channels, n)}).sigmoid()")
    b.emit(f"{v} * {e}[:, :{', None' * rank}]")


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
            f"torch.tensordot({v}, {b.param(sizes[2], n)}, dims=1)",
            f"torch.einsum('bij,bkj,jl->bikl', {v}, {other}, {b.param(sizes[2], n)}).sum(3)",
            f"F.scaled_dot_product_attention({v}, {other}, {v})",
            f"F.scaled_dot_product_attention({v}, {v}, {other}, is_causal=True)",
            f"F.scaled_dot_product_attention({v}, {v}, {v}, attn_mask={b.member(f'constant({sizes[1]}, {sizes[1]})')})",
            f"F.cosine_similarity({v}[:, :, None], {other}[:, None], dim=-1)",
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
    names = ("mean", "sum", "amax", "logsumexp", "var", "norm", "prod", "median", "max")
    name = b.rng.choice(names)
    b.emit(f"{v}.{name}(dim={dim}){'.values' if name in ('median', 'max') else ''}")


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
        f"{v}.rot90(1, (-2, -1))",
        f"{v}.cummax({dim}).values",
        f"{v}.softmax({dim}) * {v}",
        f"({v} - {v}.mean({dim}, keepdim=True)) / ({v}.std({dim}, keepdim=True) + 1)",
    ]
    b.emit(b.rng.choice(kinds))


@production(0.5)
def as_complex(b: Builder) -> None:
    v = b.pick()
    size, n = b.shape(v)[-1], b.size()
    kinds = [
        f"torch.view_as_real({v}.to(torch.complex128) @ {b.member(f'complex_param({size}, {n})')}).flatten(-2)",
        f"({v}.to(torch.complex128) @ {b.member(f'complex_param({size}, {n})')}).abs()",
    ]
    b.emit(b.rng.choice(kinds))
