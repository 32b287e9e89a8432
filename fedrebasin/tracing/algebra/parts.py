"""Parts: what the axes of the values in a graph are made of.

An axis is a tree. Its leaves are :class:`Part`, index sets of a known size; its nodes say how the leaves lie in the
axis: side by side (:class:`Concat`), as a product (:class:`Product`, outermost factor first), or one of several
depending on where another index stands (:class:`Case`: the features of q, k and v in a stacked projection). A
:class:`Run` is a stretch of a leaf that nothing has told apart from the rest of it.

Leaves are shared: what two tensors have in common is one part. Operators tie parts together, pin them, or cut them,
and all three happen in place, so that every axis that contains the part follows (union-find with structure).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        places: the tensors (index spaces) in which the part occurs, by number. A part can have its own order in each
            unit of every other part that occurs in all of them.
        cases: the cases that this part decides.
        read: whether an operator looked at the entries, and did not only rearrange them.
        cuts: where runs of the part begin or end.
    """

    size: int
    pinned: Pinned | None = None
    bound: Tree | None = None
    places: dict[int, tuple[Tree, ...]] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    read: bool = False
    cuts: set[int] = field(default_factory=set)
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


@dataclass(frozen=True)
class Run:
    """The units from ``start`` to ``stop`` of a part; the whole part is never written as a run."""

    part: Part
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many units."""
        return self.stop - self.start


Tree = Part | Product | Concat | Case | Run
UNIT = Product(())


def units(size: int, pinned: Pinned | None = None) -> Tree:
    """A new part; a single unit needs none."""
    return UNIT if size == 1 else Part(size, pinned)


def run(part: Part, start: int, stop: int) -> Tree:
    """The run in normal form, known to its part."""
    if start == stop:
        return Concat(())
    if stop - start == part.size:
        return part
    part.cuts |= {start, stop} - {0, part.size}
    return Run(part, start, stop)


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
        for one in piece.pieces if isinstance(piece, Concat) else [piece]:
            before = flat[-1] if flat else None
            if isinstance(one, Run) and isinstance(before, Run) and (before.part, before.stop) == (one.part, one.start):
                flat[-1] = run(one.part, before.start, one.stop)
            elif one.size:
                flat.append(one)
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
        case Run():
            whole = resolve(tree.part)
            return tree if whole is tree.part else take(whole, tree.start, tree.stop)
        case Case():
            options = tuple(map(resolve, tree.options))
            selector = resolve(tree.selector)
            # A selector that is about to be cut decides nothing any more: its options are being tied.
            if not isinstance(selector, Part) or all(option == options[0] for option in options):
                return options[0]
            return Case(selector, options)


def within(tree: Concat, start: int, stop: int, part_of: Callable[[Tree, int, int], Tree]) -> Iterator[Tree]:
    """The pieces between ``start`` and ``stop``; of those that reach further, what ``part_of`` says."""
    first = 0
    for piece in tree.pieces:
        low, high = max(start - first, 0), min(stop - first, piece.size)
        if low < high:
            yield piece if high - low == piece.size else part_of(piece, low, high)
        first += piece.size


def take(tree: Tree, start: int, stop: int) -> Tree:
    """The units from ``start`` to ``stop`` of a part, or of parts side by side, nothing being told apart by it."""
    match tree:
        case Part():
            return run(tree, start, stop)
        case Run():
            return run(tree.part, tree.start + start, tree.start + stop)
        case Concat():
            return concat(*within(tree, start, stop, take))
        case _:
            raise AssertionError("a part with runs is bound to parts side by side only")
