"""What a round's alignment did, as floats for Flower's ``Result``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

import torch
from torch import Tensor

from fedrebasin import Alignment, Merge


def alignment_metrics(merge: Merge, seconds: float) -> dict[str, float]:
    """Means over the aligned models.

    Returns:
        ``similarity``: cosine between each aligned model and what it was aligned to; ``distance``: Euclidean distance
        of the aligned models from their mean; ``units-moved``: share of the hidden units that changed place, in
        [0, 1]; ``seconds``: wall time of the matching.
    """
    return {
        "seconds": seconds,
        "distance": fmean(_distance(state, merge.merged) for state in merge.states),
        "similarity": fmean(alignment.similarity for alignment in merge.alignments),
        "units-moved": share_moved(merge.alignments),
    }


def share_moved(alignments: Iterable[Alignment]) -> float:
    """The share of units that changed place, in [0, 1]."""
    moved, total = 0, 0
    for alignment in alignments:
        units = sum(index.numel() for index in alignment.permutation.values())
        moved += units - sum(alignment.permutation.fixed_points().values())
        total += units
    return moved / total if total else 0.0


def _distance(state: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> float:
    squares = [
        torch.linalg.vector_norm(tensor - centre[key]).item() ** 2
        for key, tensor in state.items()
        if tensor.is_floating_point()
    ]
    return math.sqrt(math.fsum(squares))
