"""Permutations by layer: how many units two of them place alike, and applying only some of the layers' parts."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fedrebasin.analysis.barrier import Barrier, Definition, loss_barrier
from fedrebasin.errors import SpecError
from fedrebasin.running import Batch
from fedrebasin.spec import Permutation
from fedrebasin.state import State

Order = Literal["bottom-up", "top-down", "put-in", "leave-out"]


@dataclass(frozen=True)
class FixedPoints:
    """Units that two permutations send to the same place.

    Args:
        by_group: count and number of units, by group.
    """

    by_group: dict[str, tuple[int, int]]

    @property
    def total(self) -> tuple[int, int]:
        """Count and number of units over all groups."""
        counts = list(self.by_group.values())
        return sum(count for count, _ in counts), sum(units for _, units in counts)

    @property
    def share(self) -> float:
        """The share of units that are fixed, in [0, 1]; 1 where there is no unit."""
        count, units = self.total
        return count / units if units else 1.0


def fixed_points(first: Permutation, second: Permutation | None = None) -> FixedPoints:
    """Fixed points by layer and in total (Simultaneous connectivity, section 5.1).

    Args:
        first: a permutation.
        second: another one of the same spec; None for the identity.

    Raises:
        SpecError: if they belong to different specs.
    """
    counts = first.fixed_points(second)
    return FixedPoints({name: (count, first[name].numel()) for name, count in counts.items()})


def partial_permutation(permutation: Permutation, groups: Collection[str]) -> Permutation:
    """The permutation in these groups and the identity in the others.

    Raises:
        SpecError: if a group is not in the spec.
    """
    if unknown := sorted(set(groups) - set(permutation)):
        raise SpecError(f"no group {', '.join(unknown)}; the spec has {', '.join(permutation)}")
    identity = Permutation.identity(permutation.spec)
    return Permutation(permutation.spec, {n: permutation[n] if n in groups else identity[n] for n in permutation})


def partial_permutations(
    permutation: Permutation, order: Order, groups: Sequence[str] | None = None
) -> tuple[tuple[str, Permutation], ...]:
    """A permutation applied layer by layer (Simultaneous connectivity, H.3).

    Args:
        permutation: of all layers.
        order: "bottom-up": the first 0, 1, ..., n layers; "top-down": the last 0, 1, ..., n; "put-in": each layer
            alone; "leave-out": all layers but one.
        groups: from the input to the output; the spec's order by default.

    Returns:
        label and permutation: the number of layers, or the layer's group. Identities: the first k layers' and the last
        n - k layers' permutations compose to the whole, as one layer's and all others' do.

    Raises:
        SpecError: for an unknown order or group.
    """
    names = tuple(permutation) if groups is None else tuple(groups)
    if order in ("bottom-up", "top-down"):
        along = names if order == "bottom-up" else names[::-1]
        chosen = [(str(count), along[:count]) for count in range(len(along) + 1)]
    elif order == "put-in":
        chosen = [(name, (name,)) for name in names]
    elif order == "leave-out":
        chosen = [(name, tuple(other for other in names if other != name)) for name in names]
    else:
        raise SpecError(f"order {order!r}: choose bottom-up, top-down, put-in or leave-out")
    return tuple((label, partial_permutation(permutation, kept)) for label, kept in chosen)


def partial_barriers(
    model: nn.Module,
    permutation: Permutation,
    a: State,
    b: State,
    batches: Iterable[Batch],
    order: Order = "bottom-up",
    points: int = 5,
    definition: Definition = "simultaneous",
    *,
    recalibrate: Iterable[Batch] | None = None,
) -> dict[str, Barrier]:
    """The barrier between A and B under each partial permutation of B (Simultaneous connectivity, H.3).

    Args:
        model: the module.
        permutation: of B.
        a: state dict at lam = 0.
        b: state dict, before the permutation.
        batches: ``(inputs, labels)``, read more than once.
        order: see :func:`partial_permutations`.
        points: positions on each path.
        definition: of the barrier.
        recalibrate: see :func:`fedrebasin.loss_barrier`.

    Raises:
        MergeError: if the models do not fit each other.
        CalibrationError: if batches can be read only once, or do not fit the model.
    """
    return {
        label: loss_barrier(model, a, part.apply(b), batches, points, definition, recalibrate=recalibrate)
        for label, part in partial_permutations(permutation, order)
    }
