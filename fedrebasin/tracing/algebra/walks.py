"""Walking over the tree of an axis: its parts, its cases, and what holds of them."""

from collections.abc import Iterator

from fedrebasin.tracing.algebra.parts import (
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
)


def leaves(tree: Tree) -> Iterator[Part]:
    """The parts of a tree, each as often as it occurs; selectors of cases are not among them."""
    match resolve(tree):
        case Part() as part:
            yield part
        case Run(part):
            yield part
        case Product(inside) | Concat(inside) | Case(_, inside):
            for one in inside:
                yield from leaves(one)


def cases_in(tree: Tree) -> Iterator[Case]:
    """Every case in a tree."""
    tree = resolve(tree)
    if isinstance(tree, Case):
        yield tree
    match tree:
        case Product(inside) | Concat(inside) | Case(_, inside):
            for one in inside:
                yield from cases_in(one)


def at(tree: Tree, selector: Part, position: int) -> Tree:
    """The tree where ``selector`` stands at ``position``."""
    tree = resolve(tree)
    match tree:
        case Part() | Run():
            return tree
        case Product():
            return product(*(at(factor, selector, position) for factor in tree.factors))
        case Concat():
            return concat(*(at(piece, selector, position) for piece in tree.pieces))
        case Case():
            if selector_of(tree) is selector:
                return at(tree.options[position], selector, position)
            return case(selector_of(tree), [at(option, selector, position) for option in tree.options])


def pin(tree: Tree, why: Pinned) -> None:
    """The units of every part of the tree stay where they are."""
    for part in leaves(tree):
        if part.pinned is None:
            part.pinned = why


def number_of(part: Part, tree: Tree) -> int:
    """How many indices along the tree are the part's, at the same time."""
    match resolve(tree):
        case Part() as leaf:
            return int(leaf is part)
        case Run(whole):
            return int(whole is part)
        case Product(factors):
            return sum(number_of(part, factor) for factor in factors)
        case Concat(pieces):
            return max((number_of(part, piece) for piece in pieces), default=0)
        case Case(_, options):
            return max(number_of(part, option) for option in options)


def incomplete(tree: Tree) -> list[Run]:
    """Runs of one part that do not lie beside the rest of it, each once, in one axis; none where all do."""
    match resolve(tree):
        case Part():
            return []
        case Run() as alone:
            return [alone]
        case Product(inside) | Case(_, inside):
            return next((found for one in inside if (found := incomplete(one))), [])
        case Concat(pieces):
            runs = [piece for piece in pieces if isinstance(piece, Run)]
            for part in dict.fromkeys(one.part for one in runs):
                found = sorted((one for one in runs if one.part is part), key=lambda one: one.start)
                if [0, *(one.stop for one in found)] != [*(one.start for one in found), part.size]:
                    return found
            return next((found for piece in pieces if not isinstance(piece, Run) and (found := incomplete(piece))), [])


def selector_of(tree: Case) -> Part:
    """The unbound part that decides a resolved case."""
    found = resolve(tree.selector)
    assert isinstance(found, Part), "resolved cases have selectors that are parts"
    return found
