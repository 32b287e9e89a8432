"""One harness holds every kind of event against a slow and obvious oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrebasin import CalibrationError
from fedrebasin.running import forward
from fedrebasin.watching import Activation, LayerRun, Norm, Product, watch, watching

from .cases import CASES, inputs_of, random_state


def oracle(use: Product, kind: str, weight: Tensor) -> Tensor:
    """What the use gives without its bias, number by number from the weight as it lies in the state dict."""
    first, last = use.start, use.start + use.rows
    if kind == "embedding":
        return torch.stack([weight[int(token)] for token in use.inputs.flatten()]).reshape(use.output.shape)
    if kind in ("rows", "columns"):
        matrix = weight[first:last] if kind == "rows" else weight[:, first:last].T
        rows = use.inputs.reshape(-1, use.inputs.shape[-1])
        return torch.stack([torch.stack([(row * each).sum() for each in matrix]) for row in rows])
    total = torch.zeros_like(use.output)
    outputs, inputs = use.by_group(weight).shape[1:3]
    # One entry of the kernel alone at a time: a convolution with it moves one channel, times one number.
    for group, o, i in itertools.product(range(use.groups), range(outputs), range(inputs)):
        target, source = group * outputs + o, group * inputs + i
        entry = weight[source, o] if kind == "transposed" else weight[target, i]
        channel = use.inputs[:, source : source + 1]
        if kind == "transposed":
            moved = getattr(functional, f"conv_transpose{entry.dim()}d")(channel, entry[None, None])
        else:
            assert use.window is not None
            _, stride, padding, dilation = use.window
            run = getattr(functional, f"conv{entry.dim()}d")
            moved = run(channel, entry[None, None], None, stride, padding, dilation)
        total[:, target] += moved[:, 0]
    return total


@pytest.mark.parametrize("name", CASES)
def test_every_use_of_a_weight_is_seen(name: str) -> None:
    make, shape, words = CASES[name]
    model = make().double().eval()
    state, batch = random_state(model, 1), inputs_of(shape, 2)
    expected = list(zip(words.split()[::2], words.split()[1::2], strict=True))
    uses: list[str] = []
    affine: list[str] = []

    def check(use: Product) -> None:  # at once: some operators go on in place
        kind = expected[len(uses)][1].removesuffix("*")
        uses.append(use.weight)
        found = oracle(use, kind, state[use.weight])
        difference = use.units_last(use.output.reshape(found.shape) - found).flatten(0, -2)
        if use.has_bias:  # one number for each unit
            difference = difference - difference[0].clone()
        assert difference.abs().max() < 1e-9

    output = watch(model, state, batch, lambda product: affine.append(product.weight), check)
    torch.testing.assert_close(output, forward(model, state, batch))
    assert uses == [weight for weight, _ in expected]
    assert affine == [weight for weight, kind in expected if not kind.endswith("*")]


def test_parts_of_a_packed_weight_say_which_rows_they_are() -> None:
    model = CASES["cross-attention"].make().double().eval()
    uses: list[Product] = []
    watch(model, random_state(model, 1), inputs_of((2, 5, 4), 2), use=uses.append)
    assert [(use.start, use.rows, use.total) for use in uses] == [(0, 4, 12), (4, 8, 12), (0, 4, 4)]


class Norms(nn.Module):
    """A norm as a module, the same one again, one by its function, and one that keeps no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)
        self.own = nn.Module()
        self.own.register_buffer("running_mean", torch.zeros(4))
        self.own.register_buffer("running_var", torch.ones(4))

    def parts(self, x: Tensor) -> list[tuple[str | None, Tensor]]:
        y = self.norm(x).tanh()
        z = self.norm(y).tanh()
        w = functional.batch_norm(z, self.own.running_mean, self.own.running_var).tanh()
        return [("norm", x), ("norm", y), ("own", z), (None, w)]

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.parts(x)[-1][1])


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_are_seen_with_what_they_read(training: bool) -> None:
    model = Norms().double().train(training)
    state, batch = random_state(model, 1), inputs_of((9, 4), 2)
    norms: list[Norm] = []
    watch(model, state, batch, norm=lambda norm: norms.append(Norm(norm.name, norm.inputs.clone())))
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model.parts(batch)
    assert [norm.name for norm in norms] == [name for name, _ in expected]
    for norm, (_, inputs) in zip(norms, expected, strict=True):
        torch.testing.assert_close(norm.inputs, inputs)


def test_activation_functions_are_seen_as_modules_functions_and_methods() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense, self.module = nn.Conv1d(4, 4, 1), nn.Linear(5, 4), nn.GELU()

        def parts(self, x: Tensor) -> list[Tensor]:
            a = self.conv(x)
            b = self.dense(self.module(a))
            return [x, a, b, torch.tanh(b)]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts(torch.relu(x))[-1].sigmoid_()

    model = Functions().double()
    state, batch = random_state(model, 1), inputs_of((2, 4, 5), 2)
    seen: list[Activation] = []
    watch(model, state, batch, activation=lambda run: seen.append(run._replace(inputs=run.inputs.clone())))
    model.load_state_dict(state)
    with torch.no_grad():
        expected = [batch, *model.parts(batch.relu())[1:]]
    assert [run.channels_first for run in seen] == [None, True, False, False]
    functions = (torch.relu, functional.gelu, torch.tanh, torch.sigmoid)
    for run, inputs, function in zip(seen, expected, functions, strict=True):
        torch.testing.assert_close(run.inputs, inputs)
        torch.testing.assert_close(run.function(inputs.clone()), function(inputs))


def test_runs_of_modules_are_named_and_can_be_replaced() -> None:
    model = CASES["twice"].make().double()
    state, batch = random_state(model, 1), inputs_of((5, 4), 2)
    runs: list[LayerRun] = []
    with watching(model, layer=runs.append, layers=["head", "inner"]):
        for _ in range(2):  # every run of the model begins anew
            runs.clear()
            output = forward(model, state, batch)
    assert [run.name for run in runs] == ["inner", "inner#2", "head"]
    torch.testing.assert_close(runs[1].inputs[0], runs[0].output.tanh())
    torch.testing.assert_close(runs[2].output, output)

    def zero(run: LayerRun) -> Any:
        return torch.zeros_like(run.output) if run.name == "inner#2" else None

    with watching(model, layer=zero, layers=["inner#2"]):
        torch.testing.assert_close(forward(model, state, batch), state["head.bias"].expand(5, -1))


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = CASES["twice"].make()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(CalibrationError, match="cannot be run"):
        watch(model, random_state(model, 1), torch.zeros(3, 99), print)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(CalibrationError, match="no module 'nowhere'"), watching(model, layers=["nowhere"]):
        pass
