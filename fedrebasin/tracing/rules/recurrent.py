"""Rules of recurrent layers: hidden units are one group on both axes of the recurrent weights, in every gate."""

from collections.abc import Sequence
from typing import Any

from fedrebasin.tracing.algebra import UNIT, Part, Tree, case, concat, pieces
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.values import Value

Axes = tuple[Tree, ...]


def _cell(call: Call, x: Tree, hidden: Tree, weights: Sequence[Value], projection: Value | None = None) -> Tree:
    """Tie one layer in one direction. Returns the axis of the cell's state, ``hidden`` unless it is projected."""
    inner = hidden if projection is None else projection.axes[1]
    call.tie(weights[0].axes[1], x)
    call.tie(weights[1].axes[1], hidden)
    for tensor in weights:
        for gate in pieces(tensor.axes[0], [inner.size] * (tensor.shape[0] // inner.size), call.operator):
            call.tie(inner, gate)
    if projection is not None:
        call.tie(projection.axes[0], hidden)
    for part in (x, hidden, inner):
        call.together(part)
    return inner


@register_rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(
    call: Call,
    x: Value,
    states: Any,
    weights: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Axes]:
    """Stacked layers, each in one direction or two; states ``(layers x directions, batch, hidden)``."""
    if not isinstance(weights, list | tuple) or isinstance(has_biases, list | tuple):
        raise NotImplementedError("packed sequences")
    call.pin(x.axes[1 if batch_first and x.dim == 3 else 0], "order in time")
    state = states if isinstance(states, Value) else states[0]
    hidden_size = state.shape[-1]
    projected = not isinstance(states, Value) and states[1].shape[-1] != hidden_size
    directions = 2 if bidirectional else 1
    width = (4 if has_biases else 2) + projected
    layer_input, hiddens, inners = x.axes[-1], [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            start = (layer * directions + direction) * width
            hidden = call.new(hidden_size)
            own = weights[start : start + width - projected]
            projection = weights[start + width - 1] if projected else None
            inners.append(_cell(call, layer_input, hidden, own, projection))
            outputs.append(hidden)
        hiddens += outputs
        layer_input = concat(*outputs)
    number = call.new(len(hiddens), "layers are told apart")
    finals = [case(number, units) if isinstance(number, Part) else units[0] for units in (hiddens, inners)]
    for given, final in zip([states] if isinstance(states, Value) else states, finals, strict=False):
        call.tie(given.axes[0], number)
        call.tie(given.axes[-1], final)
    # Older versions of torch export the states of a oneDNN layer with an axis of one behind the layers'.
    missing = [UNIT] * (len(call.shapes[-1]) - len(state.axes))
    last = [(number, *missing, *state.axes[1:-1], final) for final in finals]
    return [(*x.axes[:-1], layer_input), *last[: len(call.shapes) - 1]]


@register_rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def recurrent_cell(call: Call, x: Value, state: Any, *weights: Value | None) -> list[Axes]:
    """One step of one layer."""
    states = [state] if isinstance(state, Value) else list(state)
    for other in states[1:]:
        call.tie(states[0].axes[-1], other.axes[-1])
    hidden = states[0].axes[-1]
    _cell(call, x.axes[-1], hidden, [value for value in weights if value is not None])
    return [states[0].axes] * len(call.shapes)
