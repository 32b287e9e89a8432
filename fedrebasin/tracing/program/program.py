"""Running the rules over the graph of an exported model."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fedrebasin.errors import one_line
from fedrebasin.tracing import rules
from fedrebasin.tracing.algebra import Pinned, leaves, pin, units
from fedrebasin.tracing.program.decompose import decomposed, tensor_nodes
from fedrebasin.tracing.program.nodes import attribute, dtypes_of, like, live_nodes, shapes_of, simplify, used
from fedrebasin.tracing.program.usage import PREFIX
from fedrebasin.tracing.registry import Call, find_rule, operator_name
from fedrebasin.tracing.values import Index, Value

CONSTANT = Pinned("a constant that is not in the state dict")


@dataclass
class Reading:
    """What reading the graph found.

    Args:
        parameters: the axes of every tensor of the state dict, by key; tied keys share a value.
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
        simplify(program.graph)
        live = live_nodes(program.graph)
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            values[node] = self._input(node, spec, live)
        self._outputs(self._graph(program.graph_module, values))
        self.index.settle()

    def _input(self, node: fx.Node, spec: Any, live: frozenset[fx.Node]) -> Any:
        key = str(spec.target).removeprefix(PREFIX)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and key in self.parameters:
            if node in live:
                self.read.add(key)
            return self.parameters[key]
        constant = spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        return self._held(node, CONSTANT if constant else Pinned("model input"))

    def _held(self, node: fx.Node, why: Pinned) -> Any:
        """What comes from outside: its units stay where they are."""
        shapes = shapes_of(node)
        if not shapes:
            return node.meta.get("val")
        return self._note(Value(tuple(units(size, why) for size in shapes[0]), dtypes_of(node)[0]))

    def _note(self, value: Value, name: str = "") -> Value:
        self.index.add(value.axes, name, value.hidden)
        return value

    def _graph(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
        """Run every node whose entries matter; the values of the placeholders are given. Returns the output's value."""
        live = live_nodes(module.graph)
        for node in module.graph.nodes:
            if node.op == "placeholder" or node in values:
                continue
            if node.op == "output":
                return fx.map_arg(node.args[0], values.__getitem__)
            if node.op == "get_attr":
                found = attribute(module, str(node.target))
                if isinstance(found, Tensor):
                    found = self._note(Value(tuple(units(size, CONSTANT) for size in found.shape), found.dtype))
                values[node] = found
            elif node in live:
                values[node] = self._node(node, values, live)
            else:
                shapes = iter(shapes_of(node))
                values[node] = like(node.meta.get("val"), (Value(tuple(map(units, shape))) for shape in shapes))
        return None

    def _outputs(self, result: Any) -> None:
        for value in rules.elementwise.tensors(result):
            for axis in value.axes:
                pin(axis, Pinned("model output"))

    def _node(self, node: fx.Node, values: Mapping[fx.Node, Any], live: frozenset[fx.Node]) -> Any:
        arguments: Any = fx.map_arg(node.args, values.__getitem__)
        keywords = fx.map_arg(node.kwargs, values.__getitem__)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return list(arguments)  # a named tuple of what is there already, as losses are decomposed
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._higher_order(node, arguments, keywords)
        shapes = shapes_of(node)
        if not shapes:
            return node.meta.get("val")
        given = rules.elementwise.tensors([arguments, keywords])
        hidden = tuple(dict.fromkeys(found for value in given for found in value.hidden))
        call = Call(operator_name(node.target), shapes, self.index, used(node, len(shapes), live), hidden)
        axes, why = _by_rule(node, call, arguments, keywords)
        if axes is None and (simpler := decomposed(node)) is not None:
            inner = [one for one in simpler.graph.nodes if one.op == "placeholder"]
            return self._graph(simpler, dict(zip(inner, map(values.__getitem__, tensor_nodes(node)), strict=True)))
        if axes is None:
            axes = self._unknown(call, [arguments, keywords], why)
        if not _only_rearranges(find_rule(node.target), given):
            for part in (part for value in given for axis in value.axes for part in leaves(axis)):
                part.read = True
        hidden += tuple(call.looked_up)
        found = [
            self._note(Value(tuple(one), dtype, hidden), call.operator)
            for one, dtype in zip(axes, dtypes_of(node), strict=True)
        ]
        value = node.meta.get("val")
        return found[0] if isinstance(value, Tensor) else like(value, iter(found))

    def _unknown(self, call: Call, arguments: Any, why: str) -> list[tuple[Any, ...]]:
        """Nothing is guessed: all that the operator touches stays where it is."""
        self.without_rule.setdefault(call.operator, why)
        call.together()
        for value in rules.elementwise.tensors(arguments):
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
        call = Call(operator_name(node.target), shapes_of(node), self.index)
        axes = self._unknown(call, [arguments, keywords], "no rule for this operator")
        return like(node.meta.get("val"), iter([self._note(Value(one)) for one in axes]))


def _by_rule(node: fx.Node, call: Call, arguments: Any, keywords: Any) -> tuple[list[tuple[Any, ...]] | None, str]:
    """The axes of what a node gives, by the operator's rule; or None, and why there is no answer."""
    rule = find_rule(node.target)
    if rule is None:
        return None, "no rule for this operator"
    try:
        return _several(rule(call, *arguments, **keywords), call.shapes), ""
    except Exception as error:  # sizes that depend on data fail in ways of their own
        return None, f"no rule for this use of the operator: {one_line(error)}"


def _several(result: Any, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[Any, ...]]:
    """A rule's answer as one tuple of axes for each tensor, checked against the shapes."""
    axes = [tuple(one) for one in result] if isinstance(result, list) else [tuple(result)]
    sizes = tuple(tuple(axis.size for axis in one) for one in axes)
    if sizes != shapes:
        raise NotImplementedError(f"the rule gives shapes {sizes} instead of {shapes}")
    return axes


def _only_rearranges(rule: Any, given: list[Value]) -> bool:
    return rule in rules.shape.REARRANGING or (rule is rules.elementwise.elementwise and len(given) == 1)
