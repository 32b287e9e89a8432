"""Cutting: a tree in two, into pieces, or into an outer and an inner index; shared parts are cut wherever they lie."""

from bisect import bisect_right
from collections.abc import Sequence

from fedrebasin.tracing.algebra import tying
from fedrebasin.tracing.algebra.parts import (
    LARGEST_SELECTOR,
    UNIT,
    Case,
    Concat,
    Part,
    Pinned,
    Product,
    Run,
    Tree,
    case,
    concat,
    product,
    resolve,
    take,
    within,
)
from fedrebasin.tracing.algebra.walks import at, cases_in, pin, selector_of

CLASH = "two ways of cutting the axis do not fit together"


def cut(tree: Tree, position: int, operator: str = "") -> tuple[Tree, Tree]:
    """The units before ``position`` and those from it on."""
    tree = resolve(tree)
    first: Tree
    second: Tree
    if position <= 0:
        return Concat(()), tree
    if position >= tree.size:
        return tree, Concat(())
    match tree:
        case Part():
            first, second = Part(position), Part(tree.size - position)
            tying.bind(tree, Concat((first, second)), operator)
            return resolve(first), resolve(second)
        case Run():
            tying.settle(tree)
            return cut(tree, position, operator)
        case Concat():
            index = bisect_right(ends(tree), position)
            first, second = cut(
                tree.pieces[index], position - sum(piece.size for piece in tree.pieces[:index]), operator
            )
            return concat(*tree.pieces[:index], first), concat(second, *tree.pieces[index + 1 :])
        case Case():
            halves = [cut(option, position, operator) for option in tree.options]
            selector = selector_of(tree)
            return case(selector, [half[0] for half in halves]), case(selector, [half[1] for half in halves])
        case Product():
            return _cut_product(tree, position, operator)


def stretch(tree: Tree, start: int, length: int, operator: str = "") -> Tree:
    """So many units from ``start`` on; a part is not cut by it until they are used without the others."""
    tree = resolve(tree)
    match tree:
        case Part() | Run():
            part = tree if isinstance(tree, Part) else tree.part
            if part.cases:
                # What an index decides is looked up by its units' places, which runs do not keep.
                tying.collapse(part)
                return stretch(tree, start, length, operator)
            found = take(tree, start, start + length)
        case Concat():
            inside = within(
                tree, start, start + length, lambda piece, low, high: stretch(piece, low, high - low, operator)
            )
            found = concat(*inside)
        case _:
            _, rest = cut(tree, start, operator)
            found, _ = cut(rest, length, operator)
    if length == 1:
        if isinstance(found, Run):
            tying.settle(found)
        return UNIT
    return found


def pieces(tree: Tree, sizes: Sequence[int], operator: str = "") -> list[Tree]:
    """The tree cut into pieces of these sizes."""
    found = []
    for size in sizes:
        piece, tree = cut(tree, size, operator)
        found.append(piece)
    return found


def divide(tree: Tree, outer: int, inner: int, operator: str = "") -> tuple[Tree, Tree]:
    """The tree as a product: the outer index and the inner one."""
    tree = resolve(tree)
    if inner == 1:
        return tree, UNIT
    if outer == 1:
        return UNIT, tree
    head: Tree
    tail: Tree
    match tree:
        case Run():
            tying.settle(tree)
            return divide(tree, outer, inner, operator)
        case Part():
            head, tail = Part(outer), Part(inner)
            tying.bind(tree, Product((head, tail)), operator)
            return head, tail
        case Product():
            first, rest = tree.factors[0], product(*tree.factors[1:])
            if outer % first.size == 0:
                head, tail = divide(rest, outer // first.size, inner, operator)
                return product(first, head), tail
            if first.size % outer == 0:
                head, tail = divide(first, outer, first.size // outer, operator)
                return head, product(tail, rest)
        case Case():
            parts = [divide(option, outer, inner, operator) for option in tree.options]
            selector = selector_of(tree)
            return case(selector, [part[0] for part in parts]), case(selector, [part[1] for part in parts])
        case Concat():
            if outer <= LARGEST_SELECTOR // 2 or all(piece.size == inner for piece in tree.pieces):
                selector = Part(outer, Pinned("pieces of a concatenation are told apart", operator))
                return selector, case(selector, pieces(tree, [inner] * outer, operator))
            if all(piece.size % inner == 0 for piece in tree.pieces):
                parts = [divide(piece, piece.size // inner, inner, operator) for piece in tree.pieces]
                tying.tie_all([part[1] for part in parts], operator)
                return concat(*(part[0] for part in parts)), parts[0][1]
    why = Pinned(CLASH, operator)
    pin(tree, why)
    return Part(outer, why), Part(inner, why)


def factorise(tree: Tree, sizes: Sequence[int], operator: str = "") -> list[Tree]:
    """The tree as a product of trees of these sizes, outermost first."""
    found = []
    rest = tree.size
    for size in sizes:
        rest //= size
        head, tree = divide(tree, size, rest, operator)
        found.append(head)
    return found


def blocks(tree: Tree, inner: int, operator: str = "") -> list[tuple[Tree, Tree]]:
    """Runs of blocks of ``inner`` neighbouring units that lie side by side: (blocks, units in a block) of each."""
    tree = resolve(tree)
    found = []
    while tree.size:
        run = tree.pieces[0].size if isinstance(tree, Concat) else tree.size
        run = run // inner * inner or inner
        head, tree = cut(tree, run, operator)
        found.append(divide(head, run // inner, inner, operator))
    return found


def _cut_product(tree: Product, position: int, operator: str) -> tuple[Tree, Tree]:
    outer, rest = tree.factors[0], product(*tree.factors[1:])
    if isinstance(outer, Part) and any(selector_of(found) is outer for found in cases_in(rest)):
        return cut(concat(*(at(rest, outer, index) for index in range(outer.size))), position, operator)
    whole, within = divmod(position, rest.size)
    before, behind = cut(outer, whole, operator)
    if not within:
        return product(before, rest), product(behind, rest)
    _, behind = cut(behind, 1, operator)
    first, second = cut(rest, within, operator)
    empty = Concat(())
    left = product(before, rest) if before.size else empty
    right = product(behind, rest) if behind.size else empty
    return concat(left, first), concat(second, right)


def ends(tree: Concat) -> list[int]:
    """Where each piece ends."""
    ends, total = [], 0
    for piece in tree.pieces:
        total += piece.size
        ends.append(total)
    return ends
