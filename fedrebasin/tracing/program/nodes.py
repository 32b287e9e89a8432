"""What the nodes of an exported graph say: shapes, dtypes, and which of them matter."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fedrebasin.tracing import rules
from fedrebasin.tracing.registry import find_rule

#: Stands for a size that depends on data. No axis of a parameter has such a size, and products of primes do not clash.
_PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121, 1_000_133)

#: Operators that ask for the shape (or dtype) of their arguments only.
_BY_SHAPE = frozenset(
    f"aten.{name}"
    for name in (
        "sym_size", "sym_numel", "sym_stride", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
        "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "_assert_tensor_metadata",
    )
)  # fmt: skip
_VIEWS = frozenset(
    f"aten.{name}"
    for name in ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "ravel", "squeeze", "unsqueeze")
)
#: Operators whose second tensor only says what shape or dtype the first is to have.
_LIKE_ANOTHER = frozenset(f"aten.{name}" for name in ("expand_as", "view_as", "reshape_as", "type_as", "to.other"))


def live_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes whose entries reach an output or are written into another tensor.

    A statistic that nothing reads and a slice that only lends its shape tell no units apart.
    """
    waiting = [node for node in graph.nodes if node.op == "output" or _writes(node)]
    live = set(waiting)
    while waiting:
        for node in _looked_at(waiting.pop()):
            if node not in live:
                live.add(node)
                waiting.append(node)
    return frozenset(live)


def simplify(graph: fx.Graph) -> None:
    """What a graph does twice, or does and undoes, it does once; but nothing is tied by reading the same constant."""
    _join_views(graph)
    # Nothing more is said of graphs that write into tensors.
    if not any(map(_writes, graph.nodes)):
        _part_constants(graph)
        _join_repeated(graph)


def _join_views(graph: fx.Graph) -> None:
    """A view of a view is one of what that was of: a shape in between, which nothing else reads, cuts no axis."""
    for node in graph.nodes:
        while _is_view(node) and _is_view(before := node.args[0]):
            node.replace_input_with(before, before.args[0])


def _is_view(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and _packet(node) in _VIEWS


def _packet(node: fx.Node) -> str:
    return str(node.target).rsplit(".", 1)[0]


def _part_constants(graph: fx.Graph) -> None:
    """Zeros, ones and the like are made anew for each call that reads them: the first states of two layers, say."""
    for node in list(graph.nodes):
        for user in list(node.users)[1:] if _is_constant(node) else ():
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node, lambda given: given))


def _join_repeated(graph: fx.Graph) -> None:
    """Calls that an earlier call has made already, with the same arguments, are that one."""
    first: dict[tuple[Any, str, str], fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function" and not _is_random(node) and not _is_constant(node):
            before = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if before is not node:
                node.replace_all_uses_with(before)


def _is_constant(node: fx.Node) -> bool:
    """Whether it makes a tensor of equal entries. Not of whole numbers, which may be places: these are told apart."""
    uniform = node.op == "call_function" and find_rule(node.target) is rules.elementwise.uniform
    return uniform and not _is_random(node) and all(dtype.is_floating_point for dtype in dtypes_of(node))


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _writes(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or _packet(node) == "aten.detach_":
        return False
    return node.target._schema.is_mutable


def _looked_at(node: fx.Node) -> list[fx.Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.all_input_nodes
    names = {str(node.target), _packet(node)}
    if names & _BY_SHAPE:
        return []
    if names & _LIKE_ANOTHER:
        return node.all_input_nodes[:1]
    return node.all_input_nodes


def shapes_of(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    """The shape of each tensor that comes out; sizes that depend on data are numbers that nothing else has."""
    return tuple(tuple(map(_size, one.shape)) for one in tensors_of(node))


def dtypes_of(node: fx.Node) -> tuple[torch.dtype, ...]:
    """The dtype of each tensor that comes out."""
    return tuple(one.dtype for one in tensors_of(node))


def tensors_of(node: fx.Node) -> list[Tensor]:
    """The (fake) tensors that come out."""
    return [one for one in tree_leaves(node.meta.get("val")) if isinstance(one, Tensor)]


def _size(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    names = sorted(expression.free_symbols, key=str)
    found = expression.subs({name: _PRIMES[_number(str(name)) % len(_PRIMES)] for name in names})
    return int(found)


def _number(name: str) -> int:
    digits = "".join(filter(str.isdigit, name))
    return int(digits) if digits else 0


def used(node: fx.Node, number: int, live: frozenset[fx.Node]) -> tuple[bool, ...]:
    """Which of the tensors that come out matter."""
    users = [user for user in node.users if user in live]
    if number == 1 or any(user.target is not operator.getitem for user in users):
        return (bool(users),) * number
    return tuple(any(user.args[1] == place for user in users) for place in range(number))


def like(structure: Any, found: Iterator[Any]) -> Any:
    """The structure with each tensor replaced by the next value."""
    if isinstance(structure, list | tuple):
        return [like(one, found) for one in structure]
    return next(found) if isinstance(structure, Tensor) else structure


def attribute(module: Any, path: str) -> Any:
    """What lies at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
