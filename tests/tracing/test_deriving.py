"""Specs of functions, found by testing: against the tracer, against all subsets of axes, and for Keras and Flax."""

import os
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedrebasin import PermutationSpec, SpecError
from tests.tracing.nets import Branches, Residual


def places(spec, state):
    """The groups as sets of axes: key, dimension, and where along it each unit lies."""
    return {
        frozenset(
            (axis.key, axis.dim, str(axis.alone().units(torch.arange(state[axis.key].shape[axis.dim])).tolist()))
            for axis in group.axes
        )
        for group in spec.groups.values()
    }


class ChannelsLast(nn.Module):
    """Two convolutions whose channels are flattened last, as in TensorFlow."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3)
        self.hidden, self.head = nn.Linear(6 * 16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = functional.gelu(self.second(functional.gelu(self.first(x))))
        return self.head(functional.gelu(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 5), nn.Linear(6, 4)
        self.cells = nn.LSTM(5, 6, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.head(self.cells(self.embedding(x))[0][:, -1])


class BothWays(nn.Module):
    """A recurrent layer in two directions, whose outputs lie side by side."""

    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(5, 6, bidirectional=True, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(1))


def conv(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def residual():
    inside = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
    wider = Residual(nn.Sequential(conv(8, 12, 2), nn.ReLU(), conv(12, 12)), conv(8, 12, 2))
    layers = (conv(1, 8), nn.ReLU(), Residual(inside), nn.ReLU(), wider, nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def flattened():
    features = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8 * 16, 16), nn.Tanh(), nn.Linear(16, 10))


def concatenated():
    """Three layers of two sizes, read as one."""
    branches = Branches(lambda *one: torch.cat(one, 1), nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(5, 6))
    return nn.Sequential(branches, nn.Tanh(), nn.Linear(16, 3))


def dense():
    """Inputs, hidden layers and outputs of one size, and a residual connection."""
    body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid())
    return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), Residual(body), nn.Linear(16, 16))


NETS = {
    "dense": (dense, lambda: torch.randn(5, 16)),
    "narrow": (lambda: nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), lambda: torch.randn(9, 4)),
    "channels first": (flattened, lambda: torch.randn(3, 1, 12, 12)),
    "channels last": (ChannelsLast, lambda: torch.randn(3, 1, 8, 8)),
    "residual": (residual, lambda: torch.randn(3, 1, 8, 8)),
    "recurrent": (Recurrent, lambda: torch.randint(0, 11, (4, 7))),
    "both ways": (BothWays, lambda: torch.randn(4, 7, 5)),
    "concatenated": (concatenated, lambda: torch.randn(6, 5)),
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("name", NETS)
def test_what_is_found_is_what_the_tracer_reads(name, seed):
    torch.manual_seed(seed)
    make, draw = NETS[name]
    model, inputs = make().eval(), draw()
    state = model.state_dict()
    spec = PermutationSpec.from_function(
        lambda given: torch.func.functional_call(model, given, (inputs,)), state, seed=seed
    )
    traced = PermutationSpec.trace(model, inputs)
    assert places(spec, state) == places(traced, state)
    assert spec.statistics == traced.statistics
    assert spec.checked
    spec.check(model, inputs, seed=seed + 1)


UNITS, LAYERS = 3, 3
SWAPS = ([1, 0, 2], [0, 2, 1])  # they generate all orders


def network(seed):
    """Layers of one width with random connections past them, and its state."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(6, UNITS))
    past = {(one, other) for one in range(LAYERS) for other in range(one + 2, LAYERS + 1) if generator.random() < 0.4}
    state = {}
    for layer in range(LAYERS):
        state[f"w{layer}"] = generator.normal(size=(UNITS, UNITS))
        state[f"b{layer}"] = generator.normal(size=UNITS)

    def outputs(given):
        known = [inputs]
        for layer in range(LAYERS):
            found = np.tanh(known[-1] @ given[f"w{layer}"] + given[f"b{layer}"])
            known.append(found + sum(known[one] for one, other in past if other == layer + 1))
        return known[-1]

    return outputs, state


def smallest_sets(function, state):
    """By trying all of them: the smallest sets of axes along which every order leaves the outputs as they are."""
    axes = [(key, dim) for key, array in state.items() for dim in range(array.ndim)]
    before, found = function(state), []
    for number in range(1, len(axes) + 1):
        for chosen in map(frozenset, combinations(axes, number)):
            if any(smaller <= chosen for smaller in found):
                continue
            for swap in SWAPS:
                moved = dict(state)
                for key, dim in chosen:
                    moved[key] = moved[key].take(swap, dim)
                if not np.allclose(function(moved), before, rtol=0, atol=1e-9):
                    break
            else:
                found.append(chosen)
    return set(found)


@pytest.mark.parametrize("seed", range(20))
def test_every_group_is_found_and_no_other(seed):
    function, state = network(seed)
    spec = PermutationSpec.from_function(function, state, seed=seed)
    found = {frozenset((axis.key, axis.dim) for axis in group.axes) for group in spec.groups.values()}
    assert found == smallest_sets(function, state)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_flattened_units_in_any_order_and_precision(order, precision):
    inputs = np.random.default_rng(0).normal(size=(4, 2, 4, 5))

    def outputs(state):
        w, b, v = (np.asarray(state[key], precision) for key in "wbv")
        features = np.tanh(np.einsum("nipq,io->nopq", inputs.astype(precision), w) + b[:, None, None])
        return features.transpose(0, *(1 + dim for dim in order)).reshape(4, -1) @ v

    state = {"w": np.ones((2, 6)), "b": np.ones(6), "v": np.ones((6 * 20, 3))}
    units = {(0, 1, 2): ("P", 20), (1, 2, 0): (20, "P"), (1, 0, 2): (4, "P", 5)}[order]
    like = {key: torch.from_numpy(array) for key, array in state.items()}
    right = PermutationSpec.from_axes({"w": (None, "P"), "b": ("P",), "v": (units, None)}, like)
    spec = PermutationSpec.from_function(outputs, state)
    assert [group.axes for group in spec.groups.values()] == [group.axes for group in right.groups.values()]


def test_what_is_not_found_is_named_with_a_reason():
    """Units in two blocks that are normalised apart: three units in each, a size that no dimension has."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(8, 5))

    def outputs(state):
        blocks = np.tanh(inputs @ state["hidden"]).reshape(8, 2, 3)
        blocks = blocks / np.linalg.norm(blocks, axis=2, keepdims=True)
        return blocks.reshape(8, 6) @ state["head"] + state["shift"].sum()

    shapes = {"hidden": (5, 6), "head": (6, 4), "shift": (6,), "scale": (1,)}
    spec = PermutationSpec.from_function(outputs, {key: generator.normal(size=shape) for key, shape in shapes.items()})
    assert not spec.groups
    reasons = {f"{key}[{dim}]": reason for key, dim, reason, _ in spec.unpermuted}
    assert "grouped" in reasons["hidden[1]"]
    assert "do not depend" in reasons["shift[0]"]
    assert reasons["scale[0]"] == "a single unit"
    assert len(reasons) == 6


@pytest.mark.slow
def test_of_packed_heads_the_units_in_each_are_found():
    """Of three heads of four units each: queries and keys, and values, of every head; not the order of the heads."""
    layer = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 4)).eval()
    inputs = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_function(
        lambda given: torch.func.functional_call(net, given, (inputs,)), net.state_dict()
    )
    spec.check(net, inputs, seed=5)
    assert sorted(group.size for group in spec.groups.values()) == [4] * 6 + [12, 24]
    assert 0 < spec.log10_symmetries < PermutationSpec.trace(net, inputs).log10_symmetries


def test_what_cannot_be_tested_is_said_in_a_line():
    with pytest.raises(SpecError, match="does not depend on the state"):
        PermutationSpec.from_function(lambda state: np.ones(3), {"a": np.ones((3, 3))})
    with pytest.raises(SpecError, match="cannot be run with random parameters"):
        PermutationSpec.from_function(lambda state: state["b"], {"a": np.ones((3, 3))})


def keras_models(keras):
    layers = keras.layers
    sequential = keras.Sequential(
        [
            layers.Input((10, 10, 1)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(12, activation="relu"),
            layers.Dense(10),
        ]
    )
    inputs = layers.Input((6, 6, 3))
    stem = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    branch = layers.SeparableConv2D(8, 3, padding="same", activation="gelu")(stem)
    pooled = layers.GlobalAveragePooling2D()(layers.Add()([stem, branch]))
    return {"sequential": sequential, "functional": keras.Model(inputs, layers.Dense(5)(pooled))}


NORMALISED = {"0[3]", *(f"{number}[0]" for number in range(1, 6))}
KERAS = {
    "sequential": {(6, frozenset({*NORMALISED, "6[0: 16x(6)]"})), (12, frozenset({"6[1]", "7[0]", "8[0]"}))},
    "functional": {(8, frozenset({*NORMALISED, "6[2]", "7[2]", "7[3]", "8[0]", "9[0]"}))},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KERAS)
def test_keras(name, seed, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    keras = pytest.importorskip("keras")
    model = keras_models(keras)[name]
    images = np.random.default_rng(seed).normal(size=(3, *model.input_shape[1:])).astype("float32")

    def outputs(state):
        model.set_weights([state[str(number)] for number in range(len(state))])
        return keras.ops.convert_to_numpy(model(images, training=False))

    weights = {str(number): array for number, array in enumerate(model.get_weights())}
    spec = PermutationSpec.from_function(outputs, weights, statistics=("4", "5"), seed=seed)
    assert {(group.size, frozenset(map(str, group.axes))) for group in spec.groups.values()} == KERAS[name]
    assert spec.statistics == {"4", "5"}


@pytest.mark.parametrize("seed", range(3))
def test_flax(seed):
    jax, flax = pytest.importorskip("jax"), pytest.importorskip("flax.linen")

    class Net(flax.Module):
        @flax.compact
        def __call__(self, x):
            x = flax.relu(flax.BatchNorm(use_running_average=True)(flax.Conv(6, (3, 3))(x)))
            x = flax.Dense(12)(x.reshape(len(x), -1))
            x = x + flax.Dense(12)(flax.gelu(flax.LayerNorm()(x)))
            return flax.Dense(4)(x)

    images = jax.random.normal(jax.random.key(seed), (3, 6, 6, 1))
    leaves, tree = jax.tree_util.tree_flatten_with_path(Net().init(jax.random.key(seed), images))
    names = [".".join(entry.key for entry in path) for path, _ in leaves]
    run = jax.jit(lambda arrays: Net().apply(jax.tree_util.tree_unflatten(tree, arrays), images))
    state = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    spec = PermutationSpec.from_function(lambda given: run([given[name] for name in names]), state, seed=seed)
    assert {group.size: len(group.axes) for group in spec.groups.values()} == {6: 7, 12: 8}
    assert "params.Dense_0.kernel[0: 36x(6)]" in str(spec)
    assert spec.statistics == {"batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"}
