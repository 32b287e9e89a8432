"""The grammar's operators that move entries around: views, joins, cuts, look-ups, writes."""

from __future__ import annotations

import math

from tests.tracing.grammar import Builder
from tests.tracing.grammar_operators import activated, activation_of, production


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


@production(1.5)
def pieces(b: Builder) -> None:
    v = b.pick()
    dim = b.dim(v)
    size = b.shape(v)[dim]
    kind = b.rng.choice(["chunk", "unbind", "split", "split"])
    if kind == "chunk" and size % 2 == 0:
        first, second = b.emit(f"{v}.chunk(2, {dim})", 2)
        b.emit(
            b.rng.choice(["{} * {}.sigmoid()", "{} - {}.tanh()", "torch.cat(({}, {}.tanh()), 1)"]).format(first, second)
        )
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
    step = b.rng.choice([1, 1, 2]) if size % 2 == 0 else 1
    before = ":, " * dim
    kinds = [
        f"{v}[{before}{start}:{stop}:{step}]",
        f"{v}[{before}{start % 2 if size % 2 == 0 else 0}::2]",
        f"{v}.narrow({dim}, {start}, {stop - start})",
    ]
    if len(b.shape(v)) > 2:
        kinds.append(f"{v}.select({dim}, {start})")
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
        f"{v}.take_along_dim({v}.argmax({dim}, keepdim=True), {dim})",
        f"torch.zeros_like({v}).index_add(0, torch.tensor([0, 1, 1]), {v}[torch.tensor([1, 0, 1])])",
        f"torch.zeros_like({v}).index_add(0, torch.tensor([0, 1, 1]), {v}[[1, 0, 1]]) + {v}",
        f"{v}.scatter({dim}, {v}.argmax({dim}, keepdim=True), 0.5)",
        f"{v}.scatter_reduce({dim}, {b.member(f'places({size}, {str(sizes)[1:-1]})')}, {v}, 'mean')",
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
        f"copied({v}, {dim}, {unit}, {v}.narrow({dim}, 0, 1).exp())",
        f"copied({v}, {dim}, 0, {b.pick(like=v, last=False)}.narrow({dim}, 0, {unit + 1}).tanh())",
        f"added({v}, {dim}, 0, {b.pick(like=v, last=False)}.narrow({dim}, 0, {unit + 1}).tanh())",
        f"added({v}, {dim}, {unit}, {v}.narrow({dim}, 0, 1).exp())",
        f"{v}.clone().clamp_(min=-1)",
        f"{v}.index_copy({dim}, torch.tensor([{unit}]), {v}.narrow({dim}, 0, 1).tanh())",
        f"torch.where({v} > 0, {v}, {v}.roll(1, 0))",
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
