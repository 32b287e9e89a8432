"""The registry of rules: for every operator, how the axes of its results follow from those of its arguments."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch

from fedrebasin.tracing.algebra import (
    LARGEST_SELECTOR,
    UNIT,
    Concat,
    Part,
    Pinned,
    Run,
    Tree,
    at,
    case,
    cases_in,
    collapse,
    concat,
    divide,
    leaves,
    pin,
    resolve,
    selector_of,
    stretch,
    take,
    tell_apart,
    tie,
    units,
)
from fedrebasin.tracing.values import Index, LookUp, Value

#: Rows of larger tables (vocabularies) are not followed one by one.
LARGEST_LOOK_UP = 1024

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
_RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Call:
    """One call of an operator, handed to its rule: what comes out, and what a rule can do to axes.

    Args:
        operator: the operator's name.
        shapes: the shape of each tensor that comes out.
        index: where index spaces are noted.
        used: whether anything reads each of the tensors that come out.
        hidden: the indices by which entries of the arguments have been looked up.
        looked_up: those by which entries of the result have been looked up here.
    """

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    index: Index
    used: tuple[bool, ...] = (True,)
    hidden: tuple[LookUp, ...] = ()
    looked_up: list[LookUp] = field(default_factory=list)
    number: int = field(default_factory=count().__next__, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only (or first) tensor that comes out."""
        return self.shapes[0]

    def tie(self, first: Tree, second: Tree) -> Tree:
        """The two axes have the same units; an axis of size 1 is broadcast. Returns the axis of the result."""
        if first.size == 1 or second.size == 1:
            return second if first.size == 1 else first
        tie(first, second, self.operator)
        return first

    def pin(self, axes: Tree | Value | Iterable[Tree], reason: str) -> None:
        """The units of these axes may not be permuted."""
        trees = axes.axes if isinstance(axes, Value) else [axes] if isinstance(axes, Tree) else axes
        for tree in trees:
            pin(tree, Pinned(reason, self.operator))

    def together(self, *axes: Tree) -> None:
        """The operator loops over these axes together.

        Units have an order of their own in each unit of another axis only if both axes are together throughout. An
        operator that mixes along an axis says so by noting the remaining axes: what remains is not told apart by it.
        """
        self.index.add(axes, self.operator, (*self.hidden, *self.looked_up))

    def mix(self, value: Value, *dims: int) -> None:
        """The operator mixes the entries of ``value`` along these dimensions."""
        mixed = {dim % value.dim for dim in dims}
        self.together(*(axis for dim, axis in enumerate(value.axes) if dim not in mixed))

    def new(self, size: int, reason: str | None = None) -> Tree:
        """A new axis; pinned if there is a reason."""
        return units(size, None if reason is None else Pinned(reason, self.operator))

    def look_up(self, given: Tree, indices: Value, by: tuple[Tree, ...] | None = None) -> None:
        """Entries along an axis are picked by indices; what differs from one to the next may go on doing so.

        ``by``: the axes of the result that say which entry was picked; those of the indices if None.
        The experts of a mixture: what each has an order of its own of stays so, as long as it is known which of them
        an entry comes from.
        """
        self.pin(given, "rows are picked by index")
        # Tables that are looked up by the same indices are numbered alike, and stay so: one axis for all of them.
        axis = self.index.looked_up.setdefault((indices.number, given.size), given)
        tie(axis, given, self.operator)
        found = resolve(axis)
        if isinstance(found, Part) and found.size <= LARGEST_LOOK_UP:
            self.looked_up.append(LookUp(found, indices.axes if by is None else by, indices.number))

    def divide(self, tree: Tree, outer: int, inner: int) -> tuple[Tree, Tree]:
        """The axis as outer index x inner index."""
        return divide(tree, outer, inner, self.operator)

    def broadcast(self, *values: Value) -> tuple[Tree, ...]:
        """The axes of an element-wise result, aligned at the last dimension."""
        rank = max((value.dim for value in values), default=0)
        axes: list[Tree] = [UNIT] * rank
        for value in values:
            for dim, axis in enumerate(value.axes, start=rank - value.dim):
                axes[dim] = self.tie(axes[dim], axis)
        return tuple(axes)

    def narrow(self, value: Value, dim: int, start: int, length: int) -> tuple[Tree, ...]:
        """The axes of ``value[start : start + length]`` along a dimension."""
        dim %= value.dim
        axes = list(value.axes)
        axis = resolve(axes[dim])
        if length == axis.size:
            return value.axes
        if isinstance(axis, Part) and self._tells_apart(axis, axes, length):
            if length == 1:
                return tuple(UNIT if d == dim else at(tree, axis, start) for d, tree in enumerate(axes))
            some = Part(length, axis.pinned)
            chosen = [[at(tree, axis, start + position) for position in range(length)] for tree in axes]
            return tuple(some if d == dim else case(some, options) for d, options in enumerate(chosen))
        axes[dim] = stretch(axis, start, length, self.operator)
        return tuple(axes)

    def some(self, axis: Tree, positions: Sequence[int]) -> Tree:
        """Some units of an axis, in rising order; they are told apart from the others only."""
        axis = resolve(axis)
        pieces = axis.pieces if isinstance(axis, Concat) else (axis,)
        if len(positions) == 1 or not all(isinstance(piece, Part | Run) or piece == UNIT for piece in pieces):
            return concat(*(stretch(axis, position, 1, self.operator) for position in positions))
        for part in leaves(axis):
            collapse(part)
        axis = resolve(axis)
        return concat(*(take(axis, position, position + 1) for position in positions))

    def _tells_apart(self, selector: Part, axes: Sequence[Tree], length: int) -> bool:
        """Whether other parts differ from one unit of ``selector`` to the next.

        When single units are picked, the parts that always occur with the selector are given that freedom.
        """
        if any(selector_of(found) is selector for axis in axes for found in cases_in(axis)):
            return True
        if selector.size > LARGEST_SELECTOR or length > 1 or selector.cuts:
            return False
        return tell_apart(selector, self.operator, (part for axis in axes for part in leaves(axis)))


def register_rule(*operators: str) -> Callable[[AnyRule], AnyRule]:
    """Teach the tracer an operator.

    Args:
        operators: names such as ``"aten.glu"`` (every overload, in place or not) or ``"mylib.scale.default"``.

    The rule is called as ``rule(call, *args, **kwargs)`` with the arguments of the operator, tensors as :class:`Value`,
    and returns the axes of the result: a tuple with one tree for each dimension, or a list of such tuples.

    Example::

        @register_rule("mylib.scale")
        def scale(call, x, factor):
            return call.broadcast(x, factor)
    """

    def register(rule: AnyRule) -> AnyRule:
        for operator in operators:
            _RULES[operator] = rule
        return rule

    return register


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator; element-wise operators need none of their own."""
    for name in _names(target):
        if name in _RULES:
            return _RULES[name]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _RULES["pointwise"]
    return None


def operator_name(target: Any) -> str:
    """The name under which an operator is registered and reported."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return str(getattr(target, "__name__", target))


def _names(target: Any) -> Iterator[str]:
    name = operator_name(target)
    yield name
    if isinstance(target, torch._ops.OpOverload):
        packet = name.rsplit(".", 1)[0]
        yield packet
        yield packet.rstrip("_")
