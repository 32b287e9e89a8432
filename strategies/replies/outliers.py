"""Outliers: models that do not agree with the others, which robust strategies need not even see.

Networks trained on the same task agree with one another about equally well once they are aligned: their cosines to the
reference lie within a few hundredths. One that was trained on something else, had its signs turned or is noise does
not, and robust strategies, which look at one coordinate or one distance at a time, see far less of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from fedrebasin import Alignment, PermutationSpec
from fedrebasin.state import State, gram, length

UNUSUAL = 3.0  # times as long as the median model
FEWEST = 5  # models among which the usual spread can be told
DEVIATIONS = 6.0  # median absolute deviations: four standard deviations
JUDGES = 21  # of many models, to which each is compared
GAP = 0.05  # of the usual cosine: nearer ones are no outliers, however alike the others are


def outliers(
    spec: PermutationSpec, alignments: Sequence[Alignment], states: Sequence[Mapping[str, Tensor]]
) -> dict[int, str]:
    """The models that agree with the reference, or with one another, far less than most, or are far longer.

    With the reference alone is not enough: who copies a part of that model agrees with it and with nobody else.
    Never half of the models or more for one reason: the usual cosine and length are medians.

    Args:
        spec: of the models.
        alignments: of the models; one that is the reference has a cosine of 1 and says nothing of the usual.
        states: the models, aligned.

    Returns:
        the reasons, by position.
    """
    if len(states) < FEWEST:
        return {}
    found = {}
    lengths = [length(state) for state in states]
    usual = median(lengths)
    for position, size in enumerate(lengths):
        if size > UNUSUAL * usual:
            found[position] = f"an outlier: {size / usual:.1f} times as long as most"
    to_reference = [alignment.similarity for alignment in alignments]
    for who, cosines in (("the reference", to_reference), ("the others", _agreement(spec, states))):
        told = [cosine for cosine in cosines if cosine < 1.0] or cosines
        usual = median(told)
        least = usual - max(DEVIATIONS * median(abs(cosine - usual) for cosine in told), GAP * abs(usual))
        for position, cosine in enumerate(cosines):
            if cosine < least:
                found[position] = f"an outlier: its cosine to {who} is {cosine:.3f}, usual is {usual:.3f}"
    return found


def _agreement(spec: PermutationSpec, states: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """The median cosine of each model to the others, as they are, or to some of them where there are many."""
    keys, count = spec.voting(states[0]), len(states)
    judges = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:JUDGES].tolist()
    lengths = torch.tensor([length(state, keys) for state in states], dtype=torch.float64).clamp(min=1e-30)
    cosines = gram(states, judges, keys) / lengths[:, None] / lengths[judges]
    cosines = cosines.nan_to_num(0.0, 0.0, 0.0)  # numbers too large for products agree with nothing
    return [
        median(cosine for judge, cosine in zip(judges, row, strict=True) if judge != position)
        for position, row in enumerate(cosines.tolist())
    ]


def of_usual_length(states: Sequence[State]) -> list[State]:
    """The models, those that are far longer than most scaled down to what is usual.

    Where models are aligned to their mean, one that is long enough is that mean, whoever sent it. Permutations that fit
    the shorter model fit the longer one as well.
    """
    lengths = [length(state) for state in states]
    usual = median(lengths)
    return [
        {key: t * (usual / size) if t.is_floating_point() else t for key, t in state.items()}
        if size > UNUSUAL * usual
        else state
        for state, size in zip(states, lengths, strict=True)
    ]
