"""What operators do to parts: tie two trees together, cut one in two, or divide one into outer and inner.

Each of these rewrites shared parts in place. Where two structures cannot be reconciled, the parts involved are pinned:
fewer symmetries are found, never a wrong one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from fedrebasin.tracing.parts import (
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
    cases_in,
    concat,
    incomplete,
    leaves,
    number_of,
    pin,
    product,
    resolve,
    selector_of,
    take,
    units,
)
from fedrebasin.tracing.parts import at as at_position

CLASH = "two ways of cutting the axis do not fit together"


def tie(first: Tree, second: Tree, operator: str = "") -> None:
    """The two trees have the same units in the same order."""
    first, second = resolve(first), resolve(second)
    if first == second:
        return
    if first.size != second.size:
        why = Pinned(f"sizes {first.size} and {second.size} meet", operator)
        pin(first, why)
        pin(second, why)
    elif isinstance(first, Run) or isinstance(second, Run):
        for one in (first, second):
            if isinstance(one, Run):
                settle(one)
        tie(first, second, operator)
    elif isinstance(first, Part) and isinstance(second, Part):
        _merge(first, second)
    elif isinstance(first, Part):
        _bind(first, second, operator)
    elif isinstance(second, Part):
        _bind(second, first, operator)
    elif isinstance(first, Case):
        _tie_case(first, second, operator)
    elif isinstance(second, Case):
        _tie_case(second, first, operator)
    elif isinstance(first, Concat):
        _tie_concat(first, second, operator)
    elif isinstance(second, Concat):
        _tie_concat(second, first, operator)
    else:
        _tie_products(first, second, operator)


def tie_all(trees: Sequence[Tree], operator: str = "") -> None:
    """All of the trees have the same units in the same order."""
    for tree in trees[1:]:
        tie(trees[0], tree, operator)


def collapse(selector: Part) -> None:
    """The selector does not matter after all: the options of each of its cases are the same units."""
    pending, selector.cases = selector.cases, []
    for found in pending:
        tie_all(found.options)


def scope(trees: Sequence[Tree], operator: str = "") -> None:
    """Make sure that these axes of one tensor stand for themselves.

    The selector of every case is itself an index of the tensor, and only one: where rows and columns are told apart
    alike (a product of stacked vectors with themselves) it is not said which of them decides. Runs of a part lie beside
    the rest of it; one that is used alone is a part of its own.
    """
    for tree in trees:
        while alone := incomplete(tree):
            settle(*alone)
    for tree in trees:
        for found in list(cases_in(tree)):
            if sum(number_of(selector_of(found), other) for other in trees) != 1:
                tie_all(found.options, operator)


def settle(*runs: Run) -> None:
    """Runs of one part become a part of their own, and the rest of that part another one.

    Args:
        runs: in their order. Where they overlap, or nothing may be moved anyway, every stretch becomes a part.
    """
    part = runs[0].part
    collapse(part)
    if part.bound is not None:
        return
    ends = [0, *sorted(part.cuts), part.size]
    stretches = list(pairwise(ends))
    chosen = [any(one.start <= start and stop <= one.stop for one in runs) for start, stop in stretches]
    if part.pinned is not None or any(before.stop > after.start for before, after in pairwise(runs)):
        _become(part, concat(*(units(stop - start) for start, stop in stretches)))
        return
    own, rest = sum(one.size for one in runs), part.size - sum(one.size for one in runs)
    parts = {True: units(own), False: units(rest) if rest else concat()}
    done = {True: 0, False: 0}
    found = []
    for (start, stop), inside in zip(stretches, chosen, strict=True):
        found.append(take(parts[inside], done[inside], done[inside] + stop - start) if parts[inside] != UNIT else UNIT)
        done[inside] += stop - start
    _become(part, concat(*found))


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
            _bind(tree, Concat((first, second)), operator)
            return resolve(first), resolve(second)
        case Run():
            settle(tree)
            return cut(tree, position, operator)
        case Concat():
            index = bisect_right(_ends(tree), position)
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
                collapse(part)
                return stretch(tree, start, length, operator)
            found = take(tree, start, start + length)
        case Concat():
            kept, first = [], 0
            for piece in tree.pieces:
                low, high = max(start - first, 0), min(start + length - first, piece.size)
                if low < high:
                    kept.append(piece if high - low == piece.size else stretch(piece, low, high - low, operator))
                first += piece.size
            found = concat(*kept)
        case _:
            _, rest = cut(tree, start, operator)
            found, _ = cut(rest, length, operator)
    if length == 1:
        if isinstance(found, Run):
            settle(found)
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
            settle(tree)
            return divide(tree, outer, inner, operator)
        case Part():
            head, tail = Part(outer), Part(inner)
            _bind(tree, Product((head, tail)), operator)
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
                tie_all([part[1] for part in parts], operator)
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


def _merge(first: Part, second: Part) -> None:
    second.bound = first
    first.places |= second.places
    first.cases += second.cases
    first.pinned = first.pinned or second.pinned
    first.read |= second.read
    first.cuts |= second.cuts


def _become(part: Part, tree: Tree) -> None:
    """The part turns out to be the tree, which inherits all that is known of it."""
    part.bound = tree
    for inside in leaves(tree):
        inside.places |= part.places
        inside.read |= part.read
    if part.pinned is not None:
        pin(tree, part.pinned)


def _bind(leaf: Part, compound: Tree, operator: str) -> None:
    collapse(leaf)
    if leaf.cuts and leaf.bound is None:
        ends = [0, *sorted(leaf.cuts), leaf.size]
        _become(leaf, concat(*(units(stop - start) for start, stop in pairwise(ends))))
    for found in list(cases_in(compound)):
        selector = selector_of(found)
        if not leaf.places.keys() <= selector.places.keys() and selector not in leaves(compound):
            tie_all(found.options, operator)
    part, tree = resolve(leaf), resolve(compound)
    if not isinstance(part, Part) or isinstance(tree, Part):
        tie(part, tree, operator)
    elif part in leaves(tree):
        # Of the same size as a part of itself: a case with the part among its options.
        assert isinstance(tree, Case)
        tie_all(tree.options, operator)
    else:
        _become(part, tree)


def _tie_case(first: Case, second: Tree, operator: str) -> None:
    match second:
        case Case() if selector_of(second) is selector_of(first):
            for one, other in zip(first.options, second.options, strict=True):
                tie(one, other, operator)
        case Product():
            outer, rest = second.factors[0], product(*second.factors[1:])
            head, tail = divide(first, outer.size, rest.size, operator)
            tie(outer, head, operator)
            tie(rest, tail, operator)
        case Concat():
            for one, other in zip(
                pieces(first, [piece.size for piece in second.pieces], operator), second.pieces, strict=True
            ):
                tie(one, other, operator)
        case _:
            for option in first.options:
                tie(option, second, operator)


def _tie_concat(first: Concat, second: Tree, operator: str) -> None:
    if isinstance(second, Concat) and (pairs := _same_runs(first, second)) is not None:
        for one, other in pairs:
            tie(one, other, operator)
        return
    if isinstance(second, Product):
        outer, rest = second.factors[0], product(*second.factors[1:])
        if (
            isinstance(outer, Part)
            and not outer.cuts
            and outer.size <= LARGEST_SELECTOR
            and len(first.pieces) == outer.size
            and all(piece.size == rest.size for piece in first.pieces)
        ):
            pin(outer, Pinned("pieces of a concatenation are told apart", operator))
            tie(rest, case(outer, first.pieces), operator)
            return
        sizes = [piece.size for piece in first.pieces]
    else:
        assert isinstance(second, Concat)
        ends = sorted({*_ends(first), *_ends(second)})
        sizes = [end - start for start, end in pairwise([0, *ends])]
    for one, other in zip(pieces(first, sizes, operator), pieces(second, sizes, operator), strict=True):
        tie(one, other, operator)


def _same_runs(first: Concat, second: Concat) -> list[tuple[Tree, Tree]] | None:
    """What is to be tied where both consist of the same stretches of as many parts; None where they do not."""
    pairs: dict[Tree, Tree] = {}
    if [piece.size for piece in first.pieces] != [piece.size for piece in second.pieces]:
        return None
    for one, other in zip(first.pieces, second.pieces, strict=True):
        if isinstance(one, Run) and isinstance(other, Run):
            if (one.start, one.stop, one.part.size) != (other.start, other.stop, other.part.size):
                return None
            one, other = one.part, other.part
        elif isinstance(one, Run) or isinstance(other, Run):
            return None
        if pairs.setdefault(one, other) != other:
            return None
    return list(pairs.items())


def _tie_products(first: Tree, second: Tree, operator: str) -> None:
    assert isinstance(first, Product)
    assert isinstance(second, Product)
    a, b = first.factors[0], second.factors[0]
    if b.size % a.size == 0:
        first, second = second, first
        a, b = b, a
    if a.size % b.size:
        pin(first, Pinned(CLASH, operator))
        pin(second, Pinned(CLASH, operator))
        return
    head, tail = divide(a, b.size, a.size // b.size, operator)
    ours, theirs = product(tail, *first.factors[1:]), product(*second.factors[1:])
    head, b = resolve(head), resolve(b)
    if (
        isinstance(head, Part)
        and isinstance(b, Part)
        and _two_of_one_tensor(head, b)
        and [tell_apart(head, operator), tell_apart(b, operator)] != [False, False]
    ):
        for position in range(head.size):
            tie(at_position(ours, head, position), at_position(theirs, b, position), operator)
        return
    tie(head, b, operator)
    tie(ours, theirs, operator)


def _two_of_one_tensor(first: Part, second: Part) -> bool:
    """Whether two parts index one tensor, so that as one part they would not say which of them decides an order."""
    if first is second or first.size > LARGEST_SELECTOR or first.cuts or second.cuts:
        return False
    return bool(first.places.keys() & second.places.keys())


def tell_apart(selector: Part, operator: str = "", among: Iterable[Part] | None = None) -> bool:
    """Give the parts that always occur with the selector an order of their own in each of its units, which then stay.

    Args:
        selector: the part whose units stay.
        operator: who demands it.
        among: the parts that may be told apart; all that occur with the selector if None.

    Returns:
        whether there are such parts; without, nothing is done.
    """
    if among is None:
        among = (part for space in selector.places.values() for axis in space for part in leaves(axis))
    others = {part for part in among if part is not selector and part.pinned is None}
    free = [part for part in others if part.places.keys() <= selector.places.keys()]
    for part in sorted(free, key=lambda part: part.number):
        pin(selector, Pinned("its entries are told apart", operator))
        options = [Part(part.size, places=dict(part.places), read=part.read) for _ in range(selector.size)]
        part.bound = case(selector, options)
    return bool(free)


def _cut_product(tree: Product, position: int, operator: str) -> tuple[Tree, Tree]:
    outer, rest = tree.factors[0], product(*tree.factors[1:])
    if isinstance(outer, Part) and any(selector_of(found) is outer for found in cases_in(rest)):
        return cut(concat(*(at_position(rest, outer, index) for index in range(outer.size))), position, operator)
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


def _ends(tree: Concat) -> list[int]:
    ends, total = [], 0
    for piece in tree.pieces:
        total += piece.size
        ends.append(total)
    return ends
