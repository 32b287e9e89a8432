"""Small specs of every kind, and states that fit them, for property tests."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor

from fedrebasin import Axis, Group, PermutationSpec
from fedrebasin.spec import Factor, Layout

State = dict[str, Tensor]

few_examples = settings(max_examples=25, deadline=None)


def mlp(*sizes: int) -> PermutationSpec:
    """Dense layers with biases; all but the last one's units are groups P_0, P_1, ..."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for layer in range(len(sizes) - 1):
        reads = f"P_{layer - 1}" if layer else None
        writes = f"P_{layer}" if layer < len(sizes) - 2 else None
        axes[f"{layer}.weight"], axes[f"{layer}.bias"] = (writes, reads), (writes,)
    shapes = {f"{k}.weight": (sizes[k + 1], sizes[k]) for k in range(len(sizes) - 1)}
    shapes |= {f"{k}.bias": (sizes[k + 1],) for k in range(len(sizes) - 1)}
    return PermutationSpec.from_axes(axes).bind({key: torch.zeros(shape) for key, shape in shapes.items()})


def flattened() -> PermutationSpec:
    """Convolution with a norm and its statistics, flattened with 2 x 3 pixels into a dense layer."""
    axes = {
        "conv.weight": ("C", None, None, None),
        "norm.weight": ("C",),
        "norm.running_mean": ("C",),
        "dense.weight": ("D", ("C", 6)),
        "head.weight": (None, "D"),
    }
    shapes = {"conv.weight": (4, 2, 3, 3), "norm.weight": (4,), "norm.running_mean": (4,)}
    shapes |= {"dense.weight": (5, 24), "head.weight": (3, 5)}
    return PermutationSpec.from_axes(axes).bind({key: torch.zeros(shape) for key, shape in shapes.items()})


def attention(heads: int = 3, size: int = 3, width: int = 4) -> PermutationSpec:
    """A packed q/k/v projection: heads, and inside each head units of q with k and of v with the output."""
    span = heads * size

    def parts(*offsets: int, inner: bool) -> tuple[Axis, ...]:
        unit = Factor(0, size)
        found = []
        for offset in offsets:
            levels = (Factor(0, heads, size), unit) if inner else (Factor(0, heads, size),)
            found.append(Axis("qkv", 0, Layout(levels, () if inner else (unit,), ((0, offset * span),))))
        return tuple(found)

    out_unit = Factor(1, size)
    out_head = Axis("out", 1, Layout((Factor(1, heads, size),), (out_unit,)))
    out_inner = Axis("out", 1, Layout((Factor(1, heads, size), out_unit)))
    groups = (
        Group("heads", heads, (*parts(0, 1, 2, inner=False), out_head)),
        Group("qk", size, parts(0, 1, inner=True), parent="heads"),
        Group("vo", size, (*parts(2, inner=True), out_inner), parent="heads"),
    )
    return PermutationSpec({group.name: group for group in groups}, {"qkv": (3 * span, width), "out": (width, span)})


def recurrent(units: int = 4, inputs: int = 3) -> PermutationSpec:
    """An LSTM cell: four gates in one axis, and a group that lies on both axes of one tensor."""
    gates = Layout((Factor(0, units),), (Factor(0, 4, units),))
    group = Group(
        "hidden",
        units,
        (Axis("input", 0, gates), Axis("state", 0, gates), Axis("state", 1), Axis("bias", 0, gates), Axis("head", 1)),
    )
    shapes = {"input": (4 * units, inputs), "state": (4 * units, units), "bias": (4 * units,), "head": (2, units)}
    return PermutationSpec({"hidden": group}, shapes)


def grouped_convolution() -> PermutationSpec:
    """A grouped convolution: blocks of channels whose inputs (dim 1) and outputs (dim 0) have units of their own."""
    blocks, size = 3, 2
    out_block = Layout((Factor(0, blocks, size),), (Factor(0, size),))
    in_units = Layout((Factor(0, blocks, size), Factor(1, size)), (Factor(0, size),))
    own = Layout((Factor(0, blocks, size), Factor(0, size)))
    read_block = Layout((Factor(1, blocks, size),), (Factor(1, size),))
    read_own = Layout((Factor(1, blocks, size), Factor(1, size)))
    groups = (
        Group(
            "blocks",
            blocks,
            (
                Axis("first", 0, out_block),
                Axis("middle", 0, out_block),
                Axis("last", 1, read_block),
            ),
        ),
        Group("inputs", size, (Axis("first", 0, own), Axis("middle", 1, in_units)), parent="blocks"),
        Group("outputs", size, (Axis("middle", 0, own), Axis("last", 1, read_own)), parent="blocks"),
    )
    shapes = {"first": (6, 4), "middle": (6, size, 3, 3), "last": (3, 6)}
    return PermutationSpec({group.name: group for group in groups}, shapes)


def frozen_blocks() -> PermutationSpec:
    """Heads that stay while the units inside them move."""
    return attention().freeze(["heads"])


ZOO = {
    "mlp": mlp(3, 4, 5, 2),
    "flattened": flattened(),
    "attention": attention(),
    "recurrent": recurrent(),
    "grouped": grouped_convolution(),
    "frozen": frozen_blocks(),
}


def state_of(spec: PermutationSpec, seed: int, dtype: torch.dtype = torch.float64) -> State:
    """Normal entries for every key."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(spec.sizes(key), generator=generator, dtype=torch.float64).to(dtype) for key in spec.shapes
    }


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
