"""The medoid: the model that the others agree with best, which no minority of them can choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedrebasin.matching import Matcher, State, WeightMatching
from fedrebasin.spec import PermutationSpec

#: Up to so many models every one is a candidate and every one is asked.
ALL = 12
CANDIDATES, JUDGES = 8, 21


def medoid(spec: PermutationSpec, states: Sequence[State], matcher: Matcher | None = None) -> int:
    """The model whose median cosine to the others, each matched to it, is largest.

    The median and not the mean: while fewer than half of the models are adversarial, each of them finds more honest
    models than accomplices below its median, so a minority that agrees with itself cannot win, nor can a far outlier
    move the choice among the honest ones. The cosine and not the distance: a model of tiny weights is near everything.
    Each pair by its own matching, and not all of them in the order of one: that one would be nearest to all others.

    Of more than 12 models 8 are candidates, and 21 (or all) are asked: at most 132 matchings, however many there are.

    Args:
        spec: bound to the models.
        states: at least one.
        matcher: of pairs (default: coordinate ascent on the weights, which is enough to tell how well they agree).

    Returns:
        its position; the first one of equals.
    """
    count = len(states)
    if count <= 2:
        return 0
    order = list(range(count))
    if count > ALL:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    candidates, judges = order[: count if count <= ALL else CANDIDATES], order[:JUDGES]
    match = WeightMatching(method="coordinate") if matcher is None else matcher
    cosines = torch.full((len(candidates), len(judges)), torch.nan)
    for row, candidate in enumerate(candidates):
        for column, judge in enumerate(judges):
            if column < row:  # candidates are the first judges, and agreement is mutual
                cosines[row, column] = cosines[column, row]
            elif column > row:
                cosines[row, column] = match(spec, reference=states[candidate], candidate=states[judge]).similarity
    return candidates[_most_central(cosines)]


def _most_central(cosines: torch.Tensor) -> int:
    """The row with the largest median, its own place (NaN) left out."""
    others = cosines.shape[1] - 1
    places = cosines.nan_to_num(nan=-torch.inf).sort(descending=True).values
    # Of an even number of others the one nearer to agreement: a minority of m in 2 m + 1 fills only m - 1 places.
    return int(places[:, (others - 1) // 2].argmax())
