"""A probe that keeps which units an alignment moved."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedrebasin.strategies import Round


@dataclass
class MovedUnits:
    """Remembers, for the last round, the share of each group's units that changed place.

    Args:
        shares: by group, in [0, 1], the mean over the aligned models; empty before the first round and for strategies
            that permute nothing.
    """

    shares: dict[str, float] = field(default_factory=dict)

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Look at a round; there is nothing to add to its metrics."""
        moved: dict[str, int] = {}
        units: dict[str, int] = {}
        for alignment in round_.merge.alignments if round_.merge is not None else ():
            for group, places in alignment.permutation.units_moved().items():
                units[group] = units.get(group, 0) + alignment.permutation[group].numel()
                moved[group] = moved.get(group, 0) + places
        self.shares = {group: moved[group] / units[group] for group in units}
        return {}
