"""Parts: what the axes of the values in a graph are made of.

An axis is a tree. Its leaves are :class:`Part`, index sets of a known size; its nodes say how the leaves lie in the
axis: side by side (:class:`Concat`), as a product (:class:`Product`, outermost factor first), or one of several
depending on where another index stands (:class:`Case`: the features of q, k and v in a stacked projection).

Leaves are shared: what two tensors have in common is one part. Operators tie parts together, pin them, or cut them,
and all three happen in place, so that every axis that contains the part follows (union-find with structure).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

LARGEST_SELECTOR = 64
_numbers = count()


class Pinned(NamedTuple):
    """Why the units of a part stay where they are, and the operator that demands it."""

    reason: str
    operator: str = ""


@dataclass(eq=False)
class Part:
    """A leaf: ``size`` units that may be interchangeable.

    Args:
        size: number of units.
        pinned: why they may not be permuted; None while they may.
        bound: the tree that the part turned out to be; None for an actual leaf.
        places: numbers of the tensors (index spaces) in which the part occurs. A part can have its own order in each
            unit of every other part that occurs in all of them.
        cases: the cases that this part decides.
    """

    size: int
    pinned: Pinned | None = None
    bound: Tree | None = None
    places: set[int] = field(default_factory=set)
    cases: list[Case] = field(default_factory=list)
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass(frozen=True)
class Product:
    """Index sets nested in one axis, outermost first. The empty product is an axis of size 1."""

    factors: tuple[Tree, ...]

    @property
    def size(self) -> int:
        """The product of the factors' sizes."""
        size = 1
        for factor in self.factors:
            size *= factor.size
        return size


@dataclass(frozen=True)
class Concat:
    """Index sets side by side."""

    pieces: tuple[Tree, ...]

    @property
    def size(self) -> int:
        """The sum of the pieces' sizes."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Case:
    """The index set is ``options[t]`` where the index ``selector`` of the same tensor stands at t."""

    selector: Part
    options: tuple[Tree, ...]

    @property
    def size(self) -> int:
        """The size that all options have."""
        return self.options[0].size


Tree = Part | Product | Concat | Case
UNIT = Product(())


def product(*factors: Tree) -> Tree:
    """The product in normal form."""
    flat: list[Tree] = []
    for factor in factors:
        if isinstance(factor, Product):
            flat += factor.factors
        elif factor.size != 1:
            flat.append(factor)
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(*pieces: Tree) -> Tree:
    """The concatenation in normal form."""
    flat: list[Tree] = []
    for piece in pieces:
        if isinstance(piece, Concat):
            flat += piece.pieces
        elif piece.size:
            flat.append(piece)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def case(selector: Part, options: Sequence[Tree]) -> Tree:
    """The case in normal form, known to its selector."""
    if all(option == options[0] for option in options):
        return options[0]
    found = Case(selector, tuple(options))
    selector.cases.append(found)
    return found


def resolve(tree: Tree) -> Tree:
    """The tree with every bound part replaced by what it is bound to."""
    match tree:
        case Part():
            if tree.bound is None:
                return tree
            tree.bound = resolve(tree.bound)
            return tree.bound
        case Product():
            if all(isinstance(factor, Part) and factor.bound is None and factor.size != 1 for factor in tree.factors):
                return tree
            return product(*map(resolve, tree.factors))
        case Concat():
            return concat(*map(resolve, tree.pieces))
        case Case():
            options = tuple(map(resolve, tree.options))
            selector = resolve(tree.selector)
            # A selector that is about to be cut decides nothing any more: its options are being tied.
            if not isinstance(selector, Part) or all(option == options[0] for option in options):
                return options[0]
            return Case(selector, options)


def selector_of(tree: Case) -> Part:
    """The unbound part that decides a resolved case."""
    found = resolve(tree.selector)
    assert isinstance(found, Part), "resolved cases have selectors that are parts"
    return found


def leaves(tree: Tree) -> Iterator[Part]:
    """The parts of a tree, each as often as it occurs; selectors of cases are not among them."""
    tree = resolve(tree)
    match tree:
        case Part():
            yield tree
        case Product():
            for factor in tree.factors:
                yield from leaves(factor)
        case Concat():
            for piece in tree.pieces:
                yield from leaves(piece)
        case Case():
            for option in tree.options:
                yield from leaves(option)


def cases_in(tree: Tree) -> Iterator[Case]:
    """Every case in a tree."""
    tree = resolve(tree)
    match tree:
        case Part():
            return
        case Product():
            for factor in tree.factors:
                yield from cases_in(factor)
        case Concat():
            for piece in tree.pieces:
                yield from cases_in(piece)
        case Case():
            yield tree
            for option in tree.options:
                yield from cases_in(option)


def at(tree: Tree, selector: Part, position: int) -> Tree:
    """The tree where ``selector`` stands at ``position``."""
    tree = resolve(tree)
    match tree:
        case Part():
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
