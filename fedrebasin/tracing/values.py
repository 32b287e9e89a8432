"""What flows through a graph: a tensor's axes as trees, and the index spaces that they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from fedrebasin.tracing.algebra import UNIT, Part, Tree, incomplete, leaves, number_of, resolve, scope, settle


@dataclass(frozen=True)
class LookUp:
    """An index that each entry of a tensor has without having an axis for it: ``weight[expert]``.

    Args:
        axis: what was indexed; its units stay where they are.
        by: the axes of the indices, which tell for each entry where in ``axis`` it was looked up.
        indices: the number of the tensor of indices: two look-ups by the same one are at the same place.
    """

    axis: Part
    by: tuple[Tree, ...]
    indices: int


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: one tree for each dimension.

    Args:
        axes: the trees.
        dtype: of the tensor; None where it does not matter.
        hidden: indices that its entries have been looked up by.
        number: its own, to know it again.
    """

    axes: tuple[Tree, ...]
    dtype: torch.dtype | None = None
    hidden: tuple[LookUp, ...] = ()
    number: int = field(default_factory=count().__next__, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension."""
        return tuple(axis.size for axis in self.axes)

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.axes)


@dataclass
class Index:
    """All index spaces of the graph so far: those of values, and those that operators loop over.

    ``looked_up``: by indices (their number) and size, the axis that was looked up by them first.
    """

    spaces: list[tuple[Tree, ...]] = field(default_factory=list)
    looked_up: dict[tuple[int, int], Tree] = field(default_factory=dict)

    def add(self, axes: Iterable[Tree], operator: str = "", hidden: Iterable[LookUp] = ()) -> None:
        """Note that these axes occur together in one tensor, and the hidden ones that they still decide."""
        space = tuple(axes)
        scope(space, operator)
        space += tuple(found.axis for found in dict.fromkeys(hidden) if _decided(found, space))
        for axis in space:
            for part in leaves(axis):
                part.places[len(self.spaces)] = space
        self.spaces.append(space)

    def settle(self) -> None:
        """Runs that ties have left apart from the rest of their parts become parts of their own."""
        pending = True
        while pending:
            pending = False
            for axis in (axis for space in self.spaces for axis in space):
                while alone := incomplete(axis):
                    settle(*alone)
                    pending = True


def _decided(found: LookUp, space: Sequence[Tree]) -> bool:
    """Whether each axis of the indices is an axis of the tensor, whole and once."""
    deciding = [by for axis in found.by if (by := resolve(axis)) != UNIT]
    return all(isinstance(by, Part) and sum(number_of(by, axis) for axis in space) == 1 for by in deciding)
