"""The medoid: the model that the others agree with best, which no minority of them can choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrebasin.matching import Matcher, State
from fedrebasin.merging.merge import Vectors
from fedrebasin.spec import PermutationSpec


def medoid(spec: PermutationSpec, states: Sequence[State], matcher: Matcher) -> int:
    """The model whose median cosine to the others, after alignment, is largest.

    The median and not the mean: while fewer than half of the models are adversarial, each of them finds more honest
    models than accomplices below its median, so a minority that agrees with itself cannot win, nor can a far outlier
    move the choice among the honest ones. The cosine and not the distance: a model of tiny weights is near everything.

    All models are aligned to one pivot, not pairwise (n matchings, not n squared). The pivot is chosen by the same
    median rule from what does not depend on the order of units: the sorted entries of each tensor.

    Args:
        spec: bound to the models.
        states: at least one.
        matcher: aligns the models to the pivot.

    Returns:
        its position; the first one of equals.
    """
    if len(states) <= 2:
        return 0
    vectors = Vectors(spec)
    signatures = [_sorted_entries(vectors.voting(state)) for state in states]
    pivot = _most_central(_cosines(signatures))
    aligned = [
        torch.cat([part.flatten() for part in vectors.voting(_towards(spec, states, pivot, k, matcher)).values()])
        for k in range(len(states))
    ]
    return _most_central(_cosines(aligned))


def _towards(spec: PermutationSpec, states: Sequence[State], pivot: int, k: int, matcher: Matcher) -> State:
    if k == pivot:
        return states[k]
    return matcher(spec, reference=states[pivot], candidate=states[k]).apply(states[k])


def _sorted_entries(voting: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().sort().values.cpu() for tensor in voting.values()])


def _cosines(vectors: Sequence[Tensor]) -> Tensor:
    rows = [vector.cpu() / max(float(vector.norm()), 1e-300) for vector in vectors]
    return torch.tensor([[float(a @ b) for b in rows] for a in rows])


def _most_central(cosines: Tensor) -> int:
    count = len(cosines)
    others = cosines[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)
    # Of an even number of others the one nearer to agreement: a minority of m in 2 m + 1 fills only m - 1 places.
    median = others.sort(descending=True).values[:, (count - 2) // 2]
    return int(median.argmax())
