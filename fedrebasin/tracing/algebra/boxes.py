"""Boxes: the axes of one tensor, spelled out as plain products of parts with offsets and strides."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedrebasin.tracing.algebra.parts import Case, Concat, Part, Product, Run, Tree, concat, product, resolve
from fedrebasin.tracing.algebra.walks import at, cases_in, selector_of


@dataclass(frozen=True)
class Box:
    """A run of an axis that is a plain product.

    Args:
        start: where it begins.
        factors: each factor with its stride, outermost first; with the place of each unit where they are uneven.
        stands: whether an index that decides a case stands still in it.
    """

    start: int
    factors: tuple[tuple[Part, int | tuple[int, ...]], ...]
    stands: bool = False

    def count(self, part: Part) -> int:
        """How often the part is among the factors."""
        return sum(factor is part for factor, _ in self.factors)


Boxes = tuple[tuple[Box, ...], ...]


def boxes(axes: tuple[Tree, ...]) -> Iterator[Boxes]:
    """All boxes by dimension; one set for each way in which the selectors of cases can stand."""
    axes = tuple(map(resolve, axes))
    for axis in axes:
        for found in cases_in(axis):
            selector = selector_of(found)
            for position in range(selector.size):
                chosen = tuple(at(one, selector, position) for one in axes)
                yield from boxes(tuple(_stand(one, selector, position) for one in chosen))
            return
    yield tuple(tuple(_boxes(axis, 0, 1)) for axis in axes)


@dataclass(eq=False)
class Standing(Part):
    """A selector that stands still at one position."""

    position: int = 0


def _stand(tree: Tree, selector: Part, position: int) -> Tree:
    match tree:
        case Part():
            return Standing(tree.size, position=position) if tree is selector else tree
        case Run():
            return tree
        case Product():
            return product(*(_stand(factor, selector, position) for factor in tree.factors))
        case Concat():
            return concat(*(_stand(piece, selector, position) for piece in tree.pieces))
        case Case():
            return Case(tree.selector, tuple(_stand(option, selector, position) for option in tree.options))


def _boxes(tree: Tree, start: int, stride: int) -> Iterator[Box]:
    match tree:
        case Standing():
            yield Box(start + tree.position * stride, (), stands=True)
        case Part():
            yield Box(start, ((tree, stride),))
        case Concat():
            places: dict[Part, list[tuple[int, int]]] = {}
            for piece in tree.pieces:
                if isinstance(piece, Run):
                    positions = range(piece.start, piece.stop)
                    places.setdefault(piece.part, []).extend(
                        (unit, start + (unit - piece.start) * stride) for unit in positions
                    )
                else:
                    yield from _boxes(piece, start, stride)
                start += piece.size * stride
            for part, found in places.items():
                where = [place for _, place in sorted(found)]
                yield Box(where[0], ((part, tuple(place - where[0] for place in where)),))
        case Product():
            if not tree.factors:
                yield Box(start, ())
                return
            inner = product(*tree.factors[1:]).size
            for outer in _boxes(tree.factors[0], start, stride * inner):
                for rest in _boxes(Product(tree.factors[1:]), 0, stride):
                    factors = (*outer.factors, *rest.factors)
                    yield Box(outer.start + rest.start, factors, outer.stands or rest.stands)
        case Case() | Run():
            raise AssertionError("cases are resolved before boxes are listed, runs lie beside the rest of their part")
