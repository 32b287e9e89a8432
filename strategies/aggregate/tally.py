"""What a round's alignment did, as floats for Flower's ``Result``."""

from __future__ import annotations

from dataclasses import dataclass

from fedrebasin import Alignment


@dataclass
class Tally:
    """Means over the aligned models, which may come one by one.

    Args:
        seconds: of the alignment; where models are aligned in several threads, of all of them together.
        failed: models that could not be aligned.
    """

    seconds: float = 0.0
    models: int = 0
    similarity: float = 0.0
    distance: float = 0.0
    units: int = 0
    moved: int = 0
    failed: int = 0

    def add(self, alignment: Alignment, distance: float) -> None:
        """Count one model.

        Args:
            alignment: what was done to it.
            distance: Euclidean, of the aligned model from what it was aligned to.
        """
        self.models += 1
        self.similarity += alignment.similarity
        self.distance += distance
        self.units += sum(index.numel() for index in alignment.permutation.values())
        self.moved += sum(alignment.permutation.units_moved().values())

    def again(self) -> Tally:
        """Of another alignment of the same round, whose seconds and failures count as well."""
        return Tally(seconds=self.seconds, failed=self.failed)

    def metrics(self) -> dict[str, float]:
        """The means; nothing where nothing was aligned.

        Returns:
            ``similarity``: cosine between each aligned model and what it was aligned to; ``distance``: Euclidean
            distance between these; ``units-moved``: share of the hidden units that changed place, in [0, 1];
            ``seconds``: of the alignment.
        """
        if not self.models:
            return {}
        return {
            "similarity": self.similarity / self.models,
            "distance": self.distance / self.models,
            "units-moved": self.moved / self.units if self.units else 0.0,
            "seconds": self.seconds,
        }
