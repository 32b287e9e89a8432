"""Tying: two trees are the same units in the same order, and what follows from that for the parts in them.

Shared parts are rewritten in place. Where two structures cannot be reconciled, the parts involved are pinned: fewer
symmetries are found, never a wrong one.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from fedrebasin.tracing.algebra import cutting
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
    units,
)
from fedrebasin.tracing.algebra.walks import at, cases_in, incomplete, leaves, number_of, pin, selector_of


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
        bind(first, second, operator)
    elif isinstance(second, Part):
        bind(second, first, operator)
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
        become(part, concat(*(units(stop - start) for start, stop in stretches)))
        return
    own, rest = sum(one.size for one in runs), part.size - sum(one.size for one in runs)
    parts = {True: units(own), False: units(rest) if rest else concat()}
    done = {True: 0, False: 0}
    found = []
    for (start, stop), inside in zip(stretches, chosen, strict=True):
        found.append(take(parts[inside], done[inside], done[inside] + stop - start) if parts[inside] != UNIT else UNIT)
        done[inside] += stop - start
    become(part, concat(*found))


#: Blocks that could be moved, if a group could lie in two places of a tensor and have groups in both.
TWO_PLACES = "blocks that lie in two places of one tensor"


def tell_apart(
    selector: Part,
    operator: str = "",
    among: Iterable[Part] | None = None,
    why: str = "its entries are told apart",
    spare: Sequence[Part] = (),
) -> bool:
    """Give the parts that always occur with the selector an order of their own in each of its units, which then stay.

    Args:
        selector: the part whose units stay.
        operator: who demands it.
        among: the parts that may be told apart; all that occur with the selector if None.
        why: the selector's units stay.
        spare: parts that are left as they are.

    Returns:
        whether there are such parts; without, nothing is done.
    """
    if among is None:
        among = (part for space in selector.places.values() for axis in space for part in leaves(axis))
    others = {part for part in among if part.pinned is None} - {selector, *spare}
    free = [part for part in others if part.places.keys() <= selector.places.keys()]
    for part in sorted(free, key=lambda part: part.number):
        pin(selector, Pinned(why, operator))
        options = [Part(part.size, places=dict(part.places), read=part.read) for _ in range(selector.size)]
        part.bound = case(selector, options)
    return bool(free)


def _merge(first: Part, second: Part) -> None:
    second.bound = first
    first.places |= second.places
    first.cases += second.cases
    first.pinned = first.pinned or second.pinned
    first.read |= second.read
    first.cuts |= second.cuts


def become(part: Part, tree: Tree) -> None:
    """The part turns out to be the tree, which inherits all that is known of it."""
    part.bound = tree
    for inside in leaves(tree):
        inside.places |= part.places
        inside.read |= part.read
    if part.pinned is not None:
        pin(tree, part.pinned)


def bind(leaf: Part, compound: Tree, operator: str) -> None:
    """The part turns out to be the tree; what its index decided, and what the tree's cases need, is tied first."""
    collapse(leaf)
    if leaf.cuts and leaf.bound is None:
        ends = [0, *sorted(leaf.cuts), leaf.size]
        become(leaf, concat(*(units(stop - start) for start, stop in pairwise(ends))))
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
        become(part, tree)


def _tie_case(first: Case, second: Tree, operator: str) -> None:
    match second:
        case Case() if selector_of(second) is selector_of(first):
            for one, other in zip(first.options, second.options, strict=True):
                tie(one, other, operator)
        case Product():
            outer, rest = second.factors[0], product(*second.factors[1:])
            head, tail = cutting.divide(first, outer.size, rest.size, operator)
            tie(outer, head, operator)
            tie(rest, tail, operator)
        case Concat():
            for one, other in zip(
                cutting.pieces(first, [piece.size for piece in second.pieces], operator), second.pieces, strict=True
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
        ends = sorted({*cutting.ends(first), *cutting.ends(second)})
        sizes = [end - start for start, end in pairwise([0, *ends])]
    for one, other in zip(cutting.pieces(first, sizes, operator), cutting.pieces(second, sizes, operator), strict=True):
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
        pin(first, Pinned(cutting.CLASH, operator))
        pin(second, Pinned(cutting.CLASH, operator))
        return
    head, tail = cutting.divide(a, b.size, a.size // b.size, operator)
    ours, theirs = product(tail, *first.factors[1:]), product(*second.factors[1:])
    head, b = resolve(head), resolve(b)
    if isinstance(head, Part) and isinstance(b, Part) and _two_of_one_tensor(head, b):
        told = [tell_apart(one, operator, why=TWO_PLACES, spare=(head, b)) for one in (head, b)]
        if any(told):
            for one in (head, b):
                pin(one, Pinned(TWO_PLACES, operator))
            for position in range(head.size):
                tie(at(ours, head, position), at(theirs, b, position), operator)
            return
    tie(head, b, operator)
    tie(ours, theirs, operator)


def _two_of_one_tensor(first: Part, second: Part) -> bool:
    """Whether two parts index one tensor, so that as one part they would not say which of them decides an order."""
    if first is second or first.size > LARGEST_SELECTOR or first.cuts or second.cuts:
        return False
    return bool(first.places.keys() & second.places.keys())
