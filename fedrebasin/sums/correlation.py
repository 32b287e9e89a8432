"""How a client's units go with a reference model's on the client's data: activation matching without server data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedrebasin.errors import CalibrationError
from fedrebasin.running import Batch
from fedrebasin.state import State
from fedrebasin.sums.algebra import EXAMPLES, Sums, demand, demand_data, demand_rows
from fedrebasin.sums.moments import moments
from fedrebasin.watching import unit_activations

_PARTS = ("count", "own", "own_squares", "reference", "reference_squares", "cross")
_VARIES = 1e-7  # a smaller standard deviation, relative to the unit's size, is rounding


@dataclass(frozen=True)
class ActivationCorrelation:
    """Cross-correlation of a reference model's units with the client's own, by group (Git Re-Basin, section 3.1).

    Payload by group: ``GROUP.cross``, the sum of reference times own activation, shape ``(units, units)``; sums and
    sums of squares of both, shape ``(units,)``; ``GROUP.count``. Every position of an image or sequence counts.

    Args:
        places: as :func:`fedrebasin.unit_places` returns it.
        reference: the reference model's state dict.
    """

    places: Mapping[str, Tensor]
    reference: State
    name: ClassVar[str] = "activation_correlation"
    batch_statistics: ClassVar[bool] = False

    def from_batch(self, model: nn.Module, state: State, batch: Batch) -> dict[str, Tensor]:
        """The sums of one batch, float64."""
        own, reference = (unit_activations(model, each, batch, self.places) for each in (state, self.reference))
        sums: dict[str, Tensor] = {}
        if own.keys() != reference.keys():
            raise CalibrationError(f"{self.name}: units are seen in one of the two models only")
        for group, mine in own.items():
            theirs = reference[group].to(mine.device)
            values = (
                torch.tensor(float(mine.shape[1]), dtype=torch.float64, device=mine.device),
                mine.sum(1),
                mine.square().sum(1),
                theirs.sum(1),
                theirs.square().sum(1),
                theirs @ mine.mT,
            )
            sums.update({f"{group}.{part}": value for part, value in zip(_PARTS, values, strict=True)})
        return sums

    def validate(self, sums: Sums) -> None:
        """Refuse sums that no data can have; a group that the client's backend never shows may be absent as a whole.

        Raises:
            CalibrationError: if an entry is missing, misshapen or not finite, a variance is negative, a correlation is
                larger than 1, or there are more values than the examples can have.
        """
        shapes: dict[str, tuple[int, ...] | None] = {}
        for group, units in self._seen(sums):
            shapes |= {f"{group}.{part}": (units,) for part in _PARTS}
            shapes |= {f"{group}.count": (), f"{group}.cross": (units, units)}
        demand(sums, shapes, self.name)
        if unknown := set(sums) - set(shapes) - {EXAMPLES}:
            raise CalibrationError(f"{self.name}: {sorted(unknown)[0]!r} was not asked for")
        for group, _ in self._seen(sums):
            own, reference = sums[f"{group}.own_squares"], sums[f"{group}.reference_squares"]
            bound = torch.outer(reference.clamp(min=0), own.clamp(min=0)) * (1 + 1e-6)
            if bool((own < 0).any() or (reference < 0).any() or (sums[f"{group}.cross"].square() > bound).any()):
                raise CalibrationError(f"{self.name}: {group} has a correlation above 1, or negative squares")
            count = sums[f"{group}.count"]
            demand_rows(sums, count, f"{self.name}: {group}")
            for whose in ("own", "reference"):
                total, squares = sums[f"{group}.{whose}"], sums[f"{group}.{whose}_squares"]
                if bool((total.square() > count * squares * (1 + 1e-9) + 1e-300).any()):
                    raise CalibrationError(f"{self.name}: {group} has a negative variance")

    def finish(self, sums: Sums) -> dict[str, Tensor]:
        """Pearson's correlation by group: shape ``(reference's units, own units)``.

        Of two units that never vary it is how alike their means m and n are, ``2 m n / (m^2 + n^2)``; where only one of
        them varies, or both are zero, 0.
        """
        demand_data(sums, self.name)
        found = {}
        for group, _ in self._seen(sums):
            count, own, own_squares, reference, reference_squares, cross = (sums[f"{group}.{part}"] for part in _PARTS)
            theirs, mine = moments(count, reference, reference_squares), moments(count, own, own_squares)
            spreads = [each.variance.sqrt() for each in (theirs, mine)]
            sizes = [(each.variance + each.mean.square()).sqrt() for each in (theirs, mine)]
            varies = [spread > _VARIES * size for spread, size in zip(spreads, sizes, strict=True)]
            both, neither = torch.outer(*varies), torch.outer(*(~each for each in varies))
            product = torch.outer(theirs.mean, mine.mean)
            squares = theirs.mean.square()[:, None] + mine.mean.square()
            correlation = (cross / count - product) / torch.where(both, torch.outer(*spreads), 1.0)
            agreement = 2 * product / squares.clamp(min=torch.finfo(torch.float64).tiny)
            found[group] = torch.where(both, correlation, torch.where(neither, agreement, 0.0)).clamp(-1, 1)
        return found

    def _seen(self, sums: Sums) -> list[tuple[str, int]]:
        """The groups that the sums speak of, and their numbers of units."""
        groups = [(key.rpartition("@")[0], len(where)) for key, where in self.places.items()]
        seen = [(group, units) for group, units in groups if any(f"{group}.{part}" in sums for part in _PARTS)]
        if not seen and groups:
            raise CalibrationError(f"{self.name}: no group was seen: {groups[0][0]}.count is missing")
        return seen


def mean_products(sums: Sums) -> dict[str, Tensor]:
    """By group the mean product of two units' activations, instead of their correlation (Git Re-Basin, Eq. 1)."""
    groups = [key.removesuffix(".cross") for key in sums if key.endswith(".cross")]
    return {group: sums[f"{group}.cross"] / sums[f"{group}.count"] for group in groups}
