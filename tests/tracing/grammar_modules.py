"""The grammar's layers: convolutions, norms, attention, recurrent cells, experts, embeddings."""

from __future__ import annotations

import math

from tests.tracing.grammar import Builder, MisfitError
from tests.tracing.grammar_operators import Draw, activated, maybe_activated, production


def first_tokens(b: Builder) -> None:
    size = b.size()
    kinds = [f"F.embedding(x, {b.param(5, size)})", f"F.embedding_bag(x, {b.param(5, size)}, mode='mean')"]
    kinds.append(f"F.embedding(x, {b.param(5, size)}) + {b.param(3, size)}")
    b.emit(b.rng.choices(kinds, [2, 1, 1])[0])


def first_vectors(b: Builder) -> None:
    sizes, out = b.shape("x"), b.size()
    bias = f", {b.param(out)}" if b.rng.random() < 0.5 else ""
    if len(sizes) == 2 or (len(sizes) == 3 and b.rng.random() < 0.6):
        (v,) = b.emit(f"F.linear(x, {b.param(out, sizes[-1])}{bias})")
    elif len(sizes) == 3:
        (v,) = b.emit(f"F.conv1d(x, {b.param(out, sizes[1], 2)}{bias})")
    else:
        (v,) = b.emit(f"F.conv2d(x, {b.param(out, sizes[1], 2, 2)}{bias})")
    maybe_activated(b, v)


FIRST: dict[str, Draw] = {"tokens": first_tokens, "vectors": first_vectors}


def channels_first(b: Builder, v: str) -> str:
    """The value with its units as channels, if a linear layer has put them last."""
    sizes, name = b.shape(v), v
    while (line := next((line for line in b.lines if name in line.targets), None)) is not None:
        if "F.linear" in line.source or "@ self" in line.source:
            last = len(sizes) - 1
            return b.emit(f"{v}.permute(0, {last}, {', '.join(map(str, range(1, last)))})")[0]
        same = [other for other in sorted(line.reads) if b.shape(other) == sizes]
        if not same:
            break
        name = same[0]
    return v


@production(2)
def convolution(b: Builder) -> None:
    v = b.pick(3, 4)
    if b.rng.random() < 0.7:
        v = channels_first(b, v)
    channels, *space = b.shape(v)[1:]
    rank = len(space)
    kernel = tuple(min(b.rng.choice([1, 2]), size) for size in space)
    groups = b.rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
    out = groups * b.rng.choice([1, 2, 2, 3])
    bias = f", {b.param(out)}" if b.rng.random() < 0.5 else ""
    padding = ", padding=1" if b.rng.random() < 0.2 and 2 in kernel else ""
    if b.rng.random() < 0.25:
        weight = b.param(channels, out // groups, *kernel)
        (v,) = b.emit(f"F.conv_transpose{rank}d({v}, {weight}{bias}, groups={groups})")
    else:
        weight = b.param(out, channels // groups, *kernel)
        (v,) = b.emit(f"F.conv{rank}d({v}, {weight}{bias}, groups={groups}{padding})")
    maybe_activated(b, v)


@production()
def two_grouped(b: Builder) -> None:
    """Grouped convolutions with a shuffle between them, around a residual now and then."""
    v = b.pick(3, 4)
    channels, *space = b.shape(v)[1:]
    if channels not in (4, 6):
        raise MisfitError
    rank, ones = len(space), [1] * len(space)
    groups = b.rng.choice([n for n in (2, 3) if channels % n == 0])
    (h,) = b.emit(f"F.conv{rank}d({v}, {b.param(channels, channels // groups, *ones)}, groups={groups}).tanh()")
    if b.rng.random() < 0.7:
        (h,) = b.emit(f"{h}.unflatten(1, ({groups}, {channels // groups})).transpose(1, 2).flatten(1, 2)")
    (h,) = b.emit(f"F.conv{rank}d({h}, {b.param(channels, channels // groups, *ones)}, groups={groups})")
    b.emit(f"{v} + {h}" if b.rng.random() < 0.5 else f"{h}.tanh()")


@production(2)
def norm(b: Builder) -> None:
    v = b.pick()
    sizes = b.shape(v)
    last, channels = sizes[-1], sizes[1]
    affine = f", {b.param(last)}, {b.param(last)}" if b.rng.random() < 0.6 else ""
    normed = math.prod(sizes[1:])
    groups = b.rng.choice([n for n in range(1, channels + 1) if channels % n == 0 and normed > n] or [1])
    dims = {2: "1d", 3: "1d", 4: "2d"}.get(len(sizes))
    kinds = [
        f"F.layer_norm({v}, ({last},){affine})",
        f"F.group_norm({v}, {groups}, {b.param(channels)}, {b.param(channels)})",
        f"F.rms_norm({v}, ({last},), {b.param(last)})",
        f"F.instance_norm({v}, weight={b.param(channels)}, bias={b.param(channels)})",
        f"F.layer_norm({v}, {sizes[-2:]}, {b.param(*sizes[-2:])})",
    ]
    if dims:
        kinds.append(f"{b.member(f'nn.BatchNorm{dims}({channels})')}({v})")
    b.emit(b.rng.choice(kinds))


@production()
def pool(b: Builder) -> None:
    v = channels_first(b, b.pick(3, 4))
    rank = len(b.shape(v)) - 2
    b.emit(
        b.rng.choice(
            [f"F.max_pool{rank}d({v}, 2)", f"F.avg_pool{rank}d({v}, 2, 1)", f"F.adaptive_avg_pool{rank}d({v}, 1)"]
        )
    )


@production(0.7)
def image(b: Builder) -> None:
    v = b.pick(4)
    kinds = [
        f"F.unfold({v}, 2)",
        f"F.pixel_shuffle({v}, 2)",
        f"F.pixel_unshuffle({v}, 2)",
        f"F.interpolate({v}, scale_factor=2)",
        f"F.grid_sample({v}, {v}.mean(1)[..., None].repeat(1, 1, 1, 2).tanh(), align_corners=False)",
        f"F.channel_shuffle({v}, 2)",
    ]
    b.emit(b.rng.choice(kinds))


@production(2)
def attention(b: Builder) -> None:
    v = b.pick(3)
    width, heads, size = b.shape(v)[-1], 2, b.rng.choice([1, 2, 2])
    kind = b.rng.choice(["packed", "split", "grouped", "linear", "module"])
    whole = heads * size
    if kind == "module" and width % 2 == 0:
        (h,) = b.emit(f"{b.member(f'nn.MultiheadAttention({width}, 2, batch_first=True)')}({v}, {v}, {v})[0]")
    elif kind == "grouped":
        (q,) = b.emit(f"F.linear({v}, {b.param(whole, width)}).unflatten(-1, ({heads}, {size})).transpose(1, 2)")
        (k,) = b.emit(f"F.linear({v}, {b.param(size, width)})[:, None]")
        (h,) = b.emit(f"F.scaled_dot_product_attention({q}, {k}, {k}, enable_gqa=True).transpose(1, 2).flatten(2)")
    elif kind == "split":
        q, k, u = (
            b.emit(f"F.linear({v}, {b.param(whole, width)}).unflatten(-1, ({heads}, {size})).transpose(1, 2)")[0]
            for _ in range(3)
        )
        (h,) = b.emit(f"(({q} @ {k}.transpose(-1, -2)).softmax(-1) @ {u}).transpose(1, 2).flatten(2)")
    elif kind == "packed":
        (h,) = b.emit(f"F.linear({v}, {b.param(3 * whole, width)})")
        if b.rng.random() < 0.5:
            (h,) = b.emit(f"{h}.unflatten(-1, (3, {heads}, {size})).permute(2, 0, 3, 1, 4)")
        else:
            (h,) = b.emit(f"{h}.unflatten(-1, ({heads}, 3, {size})).permute(3, 0, 2, 1, 4)")
        (h,) = b.emit(f"F.scaled_dot_product_attention(*{h}.unbind(0)).transpose(1, 2).flatten(2)")
    else:
        (q,) = b.emit(f"F.linear({v}, {b.param(whole, width)})")
        (h,) = b.emit(f"torch.softmax({q} @ {v if whole == width else q}.transpose(1, 2), -1) @ {v}")
    if b.rng.random() < 0.5:
        (h,) = b.emit(f"F.linear({h}, {b.param(width, b.shape(h)[-1])})")
        b.emit(f"{v} + {h}")


@production()
def recurrent(b: Builder) -> None:
    v = b.pick(3)
    size = b.shape(v)[-1]
    kind = b.rng.choice(["RNN", "GRU", "LSTM"])
    both = ", bidirectional=True" if b.rng.random() < 0.2 else ""
    module = b.member(f"nn.{kind}({size}, {b.size(4)}, batch_first=True{both})")
    b.emit(f"{module}({v})[0]{b.rng.choice(['', '[:, -1]'])}")


@production(0.3)
def layer(b: Builder) -> None:
    """Layers of torch that are several operators each."""
    v = b.pick(3)
    size = b.shape(v)[-1]
    kinds = [
        f"nn.TransformerEncoderLayer({size}, 1, 2, batch_first=True)",
        f"nn.GRU({size}, 2, 2, batch_first=True)",
        f"nn.utils.parametrizations.weight_norm(nn.Linear({size}, 3))",
    ]
    kind = b.rng.choice(kinds)
    b.emit(f"{b.member(kind)}({v}){'[0]' if 'GRU' in kind else ''}")


@production(0.7)
def cell(b: Builder) -> None:
    v = b.pick(2)
    size, n = b.shape(v)[-1], b.size(4)
    kind = b.rng.choice(["nn.GRUCell", "nn.LSTMCell", "nn.RNNCell"])
    b.emit(f"{b.member(f'{kind}({size}, {n})')}({v}){'[0]' if 'LSTM' in kind else ''}")


@production()
def experts(b: Builder) -> None:
    """Two experts out of three by their scores, or all of them weighted."""
    v = b.pick(2)
    size, n, number = b.shape(v)[-1], b.size(4), 3
    up, down = b.param(number, size, n), b.param(number, n, size)
    (scores,) = b.emit(f"F.linear({v}, {b.param(number, size)})")
    if b.rng.random() < 0.6:
        (w,) = b.emit(f"{scores}.topk(2).values.softmax(-1)")
        (h,) = b.emit(f"torch.einsum('bd,bkdf->bkf', {v}, {up}[{scores}.topk(2).indices]).tanh()")
        (y,) = b.emit(f"torch.einsum('bk,bkf,bkfd->bd', {w}, {h}, {down}[{scores}.topk(2).indices])")
    else:
        (h,) = b.emit(f"torch.einsum('bd,kdf->bkf', {v}, {up}).tanh()")
        (y,) = b.emit(f"torch.einsum('bk,bkf,kfd->bd', {scores}.softmax(-1), {h}, {down})")
    if b.rng.random() < 0.5:
        b.emit(f"{v} + {y}")


@production(0.7)
def looked_up(b: Builder) -> None:
    """Distances to centres, bilinear forms, rows picked by what is largest."""
    v = b.pick(2)
    size, n = b.shape(v)[-1], b.size()
    kinds = [
        f"torch.exp(-torch.cdist({v}, {b.param(n, size)}))",
        f"F.bilinear({v}, {v}, {b.param(n, size, size)})",
        f"{b.param(n, size)}[F.linear({v}, {b.param(n, size)}).argmax(-1)] * {v}",
        f"F.embedding({v}.argsort(-1), {b.param(size, n)})",
        f"torch.addmm({b.param(n)}, {v}, {b.param(size, n)})",
        f"F.one_hot({v}.argmax(-1), {size}).double() @ {b.param(size, n)}",
    ]
    activated(b, *b.emit(b.rng.choice(kinds)))
