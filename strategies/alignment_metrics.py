"""What a round's alignment did, as floats for Flower's ``Result``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from fedrebasin import Merge


def alignment_metrics(merge: Merge, seconds: float) -> dict[str, float]:
    """Means over the aligned models.

    Returns:
        ``similarity``: cosine between each aligned model and what it was aligned to; ``distance``: Euclidean distance
        of the aligned models from their mean; ``units-moved``: share of the hidden units that changed place, in
        [0, 1]; ``seconds``: wall time of the matching.
    """
    alignments = merge.alignments
    measured = {"seconds": seconds, "distance": fmean(_distance(state, merge.merged) for state in merge.states)}
    if alignments:
        measured["similarity"] = fmean(alignment.similarity for alignment in alignments)
        moved, total = 0, 0
        for alignment in alignments:
            fixed = alignment.permutation.fixed_points()
            for name, count in fixed.items():
                units = alignment.permutation[name].numel()
                moved, total = moved + units - count, total + units
        measured["units-moved"] = moved / total if total else 0.0
    return measured


def _distance(state: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> float:
    squares = [
        torch.linalg.vector_norm(tensor - centre[key]).item() ** 2
        for key, tensor in state.items()
        if tensor.is_floating_point()
    ]
    return math.sqrt(math.fsum(squares))
