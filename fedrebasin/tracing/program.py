"""Running the rules over the graph of an exported model."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fedrebasin.tracing import (
    rules_elementwise,
    rules_index,
    rules_linear,
    rules_norm,
    rules_order,
    rules_recurrent,
    rules_shape,
)
from fedrebasin.tracing.decompose import decomposed, tensor_nodes
from fedrebasin.tracing.parts import UNIT, Part, Pinned, pin
from fedrebasin.tracing.registry import Call, Index, Value, find_rule, operator_name

RULES = (rules_elementwise, rules_index, rules_linear, rules_norm, rules_order, rules_recurrent, rules_shape)
LARGEST_CONSTANT = 2**26


@dataclass
class Reading:
    """What reading the graph found.

    Args:
        parameters: the axes of every floating point tensor of the state dict, by key; tied keys share a value.
        index: all index spaces.
        read: the keys that some operator reads.
        without_rule: operators that no rule knows.
    """

    parameters: dict[str, Value]
    index: Index = field(default_factory=Index)
    read: set[str] = field(default_factory=set)
    without_rule: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.parameters.values():
            self.index.add(value.axes)

    def run(self, program: ExportedProgram) -> None:
        """Follow the axes of the parameters through the graph, in place."""
        values: dict[fx.Node, Any] = {}
        signature = program.graph_signature
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            values[node] = self._input(program, node, spec)
        self._outputs(self._graph(program.graph_module, values))

    def _input(self, program: ExportedProgram, node: fx.Node, spec: Any) -> Any:
        shape = _shapes(node)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in self.parameters:
            if node.users:
                self.read.add(spec.target)
            return self.parameters[spec.target]
        if not shape:
            return node.meta.get("val")
        if spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constant = program.state_dict.get(spec.target, program.constants.get(spec.target))
            return self._constant(constant if isinstance(constant, Tensor) else None, shape[0])
        return self._note(Value(tuple(_axis(size, Pinned("model input")) for size in shape[0])))

    def _constant(self, tensor: Tensor | None, shape: tuple[int, ...]) -> Value:
        """Axes along which a constant is the same everywhere are free, the others pinned."""
        why = Pinned("a constant that is not in the state dict")
        if tensor is None or tensor.is_meta or tensor.numel() > LARGEST_CONSTANT:
            return self._note(Value(tuple(_axis(size, why) for size in shape)))
        same = [size > 1 and bool((tensor == tensor.narrow(dim, 0, 1)).all()) for dim, size in enumerate(shape)]
        return self._note(
            Value(tuple(_axis(size, None if one else why) for size, one in zip(shape, same, strict=True)))
        )

    def _note(self, value: Value, name: str = "") -> Value:
        self.index.add(value.axes, name)
        return value

    def _graph(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
        """Run every node; the values of the placeholders are given. Returns the output's value."""
        for node in module.graph.nodes:
            if node.op == "placeholder" or node in values:
                continue
            if node.op == "output":
                return fx.map_arg(node.args[0], values.__getitem__)
            if node.op == "get_attr":
                found = _attribute(module, str(node.target))
                values[node] = self._constant(found, tuple(found.shape)) if isinstance(found, Tensor) else found
                continue
            values[node] = self._node(node, values)
        return None

    def _outputs(self, result: Any) -> None:
        for value in rules_elementwise.tensors(result):
            for axis in value.axes:
                pin(axis, Pinned("model output"))

    def _node(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        arguments: Any = fx.map_arg(node.args, values.__getitem__)
        keywords = fx.map_arg(node.kwargs, values.__getitem__)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._higher_order(node, arguments, keywords)
        shapes = _shapes(node)
        name = operator_name(node.target)
        if not shapes:
            return node.meta.get("val")
        call = Call(name, shapes, self.index, _used(node, len(shapes)))
        rule = find_rule(node.target)
        why = "no rule for this operator"
        axes = None
        if rule is not None:
            try:
                axes = _several(rule(call, *arguments, **keywords), shapes)
            except (NotImplementedError, TypeError, ValueError, LookupError, AttributeError) as error:
                why = f"no rule for this use of the operator: {error}"
        if axes is None:
            simpler = decomposed(node)
            if simpler is not None:
                inner = [one for one in simpler.graph.nodes if one.op == "placeholder"]
                return self._graph(simpler, dict(zip(inner, map(values.__getitem__, tensor_nodes(node)), strict=True)))
            axes = self._unknown(call, [arguments, keywords], why)
        found = [self._note(Value(tuple(one)), name) for one in axes]
        value = node.meta.get("val")
        return found[0] if isinstance(value, Tensor) else _like(value, iter(found))

    def _unknown(self, call: Call, arguments: Any, why: str) -> list[tuple[Any, ...]]:
        """Nothing is guessed: all that the operator touches stays where it is."""
        self.without_rule.setdefault(call.operator, why)
        call.together()
        for value in rules_elementwise.tensors(arguments):
            call.pin(value, why)
            call.together()
        return [tuple(call.new(size, why) for size in shape) for shape in call.shapes]

    def _higher_order(self, node: fx.Node, arguments: Any, keywords: Any) -> Any:
        """Blocks such as ``torch.no_grad`` are read through; loops and branches are not."""
        for place, argument in enumerate(arguments):
            if isinstance(argument, fx.GraphModule) and operator_name(node.target).startswith("wrap_with"):
                inner = [one for one in argument.graph.nodes if one.op == "placeholder"]
                given = dict(zip(inner, arguments[place + 1 :], strict=True))
                return self._graph(argument, given)
        call = Call(operator_name(node.target), _shapes(node), self.index)
        axes = self._unknown(call, [arguments, keywords], "no rule for this operator")
        return _like(node.meta.get("val"), iter([self._note(Value(one)) for one in axes]))


def _axis(size: int, why: Pinned | None) -> Any:
    return UNIT if size == 1 else Part(size, why)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    value = node.meta.get("val")
    flat = torch.utils._pytree.tree_leaves(value)
    return tuple(tuple(int(size) for size in one.shape) for one in flat if isinstance(one, Tensor))


def _used(node: fx.Node, number: int) -> tuple[bool, ...]:
    """Which of the tensors that come out are read."""
    users = list(node.users)
    if number == 1 or any(user.target is not operator.getitem for user in users):
        return (bool(users),) * number
    return tuple(any(user.args[1] == place and user.users for user in users) for place in range(number))


def _like(structure: Any, found: Iterator[Value]) -> Any:
    """The structure with each tensor replaced by the next value."""
    if isinstance(structure, list | tuple):
        return [_like(one, found) for one in structure]
    return next(found) if isinstance(structure, Tensor) else structure


def _several(result: Any, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[Any, ...]]:
    """A rule's answer as one tuple of axes for each tensor, checked against the shapes."""
    axes = [tuple(one) for one in result] if isinstance(result, list) else [tuple(result)]
    sizes = tuple(tuple(axis.size for axis in one) for one in axes)
    if sizes != shapes:
        raise NotImplementedError(f"the rule gives shapes {sizes} instead of {shapes}")
    return axes
