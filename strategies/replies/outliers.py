"""Outliers: models that do not agree with the others, which robust strategies need not even see.

Networks trained on the same task agree with one another about equally well once they are aligned, in every layer. A
layer that was trained on something else, turned, shuffled or emptied does not; and a model that agrees with every
honest one better than these do with one another was made of them. Robust strategies, which look at one coordinate or at
the distance of whole models, see far less of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from fedrebasin import Alignment, PermutationSpec
from fedrebasin.state import State, length

from .agreement import WHOLE, Agreement, agreement, nearness
from .spread import ROUNDING, allowed, beyond

UNUSUAL = 3.0  # times as long as the median model
FEWEST = 5  # models among which the usual spread can be told
#: How many rounds in which all replies are honest lose one: of a hundred, where what is measured is spread normally.
FALSE_ALARMS = 0.01
#: Of the distance between two replies: a length that differs by less does no more than honest replies do.
HARMLESS = 0.25
#: Of the limit of agreeing too little, for a reference that all were turned towards: it agrees more than usual.
OF_REFERENCE = 0.1
_HALF = 0.6745  # standard deviations: half of normal numbers are nearer to their centre


@dataclass(frozen=True)
class Margin:
    """How near each reply is to what one test allows.

    Args:
        test: what is looked at, in words.
        layer: where; the whole model is ``WHOLE``.
        shares: of the way from the usual to the limit, shape (replies,): beyond 1 lies an outlier.
        values: what was measured, shape (replies,).
    """

    test: str
    layer: str
    shares: Tensor
    values: Tensor

    def reason(self, position: int) -> str:
        """Why a reply is set aside."""
        value, usual = float(self.values[position]), float(self.values.quantile(0.5))
        times = float(self.shares[position])
        return f"an outlier: {self.test}: {value:.3g}, usual is {usual:.3g}, {times:.1f} times the honest spread"


def outliers(
    spec: PermutationSpec, alignments: Sequence[Alignment], states: Sequence[Mapping[str, Tensor]]
) -> dict[int, str]:
    """The models that lie beyond what honest spread allows: see :func:`margins`, and all but one of near copies.

    Those that were found no longer say what is usual, and the others are looked at again. Never half of the models or
    more. With fewer than five replies nothing is usual.

    Args:
        spec: of the models.
        alignments: of the models; one whose cosine is 1 is the reference.
        states: the models, aligned.

    Returns:
        the reasons, by position.
    """
    found: dict[int, str] = {}
    left = list(range(len(states)))
    if len(left) < FEWEST:
        return found
    everything = agreement(spec, states)
    while len(left) >= FEWEST:
        known = everything.of(left)
        reference = [alignments[position].similarity >= 1.0 for position in left]
        worst = _worst(margins(known, reference)) or _copies(known, reference)
        room = (len(states) - 1) // 2 - len(found)
        if not worst or not room:
            break
        new = {left[at]: reason for at, reason in list(worst.items())[:room]}
        found |= new
        left = [position for position in left if position not in new]
    return found


def margins(known: Agreement, reference: Sequence[bool]) -> list[Margin]:
    """How near each reply is to every limit; what an attacker who knows the rules has to stay below.

    In each layer, and in the whole model: whether it agrees with the others less or more than they do with one another
    (by the median cosine), whether it is longer or shorter; and whether its nearest neighbour is nearer than how well
    both agree with the others would have it. The limits are those of all tests together (Bonferroni): one of honest
    replies passes one of them in ``FALSE_ALARMS`` of the rounds. How many spreads that is depends on the number of
    replies: of five one has to be far out.

    Args:
        known: lengths and cosines of at least ``FEWEST`` models.
        reference: which models the others were aligned to. Such a one may agree with all of them better than they do
            with one another, and says nothing of what is usual. Where one layer of it does, every model was turned
            towards it, so that all layers do that are permuted, or it was made to be chosen.
    """
    honest = [not each for each in reference]
    if sum(honest) < 3:
        honest = [True] * len(reference)
    rate = _rate(known)
    near = {layer: nearness(known.with_others(layer)) for layer in known.lengths}
    too_far = {layer: beyond(-each, rate, honest) for layer, each in near.items()}
    turned = [
        at for at, each in enumerate(reference) if each and any(too_far[layer][at] < -1 for layer in known.permuted)
    ]
    for layer in known.permuted:
        too_far[layer][turned] /= OF_REFERENCE
    found = []
    for layer, lengths in known.lengths.items():
        cosines = known.with_others(layer)
        too_near = torch.where(torch.tensor(reference), -torch.inf, beyond(near[layer], rate, honest))
        long = lengths / lengths.quantile(0.5).clamp(min=1e-30)
        least = HARMLESS * (2 - 2 * float(cosines.quantile(0.5))) ** 0.5
        found += [
            Margin(f"{layer} agrees too little with the others'", layer, too_far[layer], cosines),
            Margin(f"{layer} agrees more with the others' than these with one another", layer, too_near, cosines),
            Margin(f"the length of {layer} is too large", layer, beyond(long, rate, least=least), long),
            Margin(f"the length of {layer} is too small", layer, beyond(-long, rate, least=least), long),
        ]
    nearest = known.pairs.clone().fill_diagonal_(-1.0).max(1).values
    found.append(Margin("it is nearly a copy of another one", WHOLE, _copying(known).max(1).values, nearest))
    return found


def _worst(found: Sequence[Margin]) -> dict[int, str]:
    """The reasons of those that pass a limit other than a copy's, by layers where one does, the farthest first."""
    *tests, _ = found
    passed = [(share, at, test) for test in tests for at, share in enumerate(test.shares.tolist()) if share > 1]
    reasons: dict[int, str] = {}
    for _, at, test in sorted(passed, key=lambda each: (each[2].layer == WHOLE, -each[0])):
        reasons.setdefault(at, test.reason(at))
    return reasons


def _copies(known: Agreement, reference: Sequence[bool]) -> dict[int, str]:
    """The reasons of all but one of models that are nearly the same: that which agrees best with the others stays."""
    *_, test = margins(known, reference)
    near = _copying(known) > 1
    agreeing = known.with_others(WHOLE)
    found: dict[int, str] = {}
    while bool(near.any()):
        most = near.sum(1)
        worst = min(range(len(most)), key=lambda at: (-int(most[at]), float(agreeing[at])))
        found[worst] = test.reason(worst)
        near[worst], near[:, worst] = False, False
    return found


def _copying(known: Agreement) -> Tensor:
    """How much nearer two models are than how well both agree with the others would have it, 1 being the limit.

    What is left of transformed cosines, once a number of each model is taken from them, is spread about 0; from so many
    pairs there are as many fewer to tell the spread by as there are models. Pairs depend on one another: models of
    clients that hold the same classes lie near each other all, and limits are those of as many numbers as there are
    models, not pairs. The diagonal is -inf.
    """
    near = nearness(known.pairs)
    others = near.clone().fill_diagonal_(torch.nan).nanquantile(0.5, dim=1)
    left = near - others - others[:, None] + others.quantile(0.5)
    count = len(left)
    pairs = left[tuple(torch.triu_indices(count, count, 1))]
    free = len(pairs) - count
    spread = float(pairs.abs().quantile(0.5)) / _HALF * (len(pairs) / free) ** 0.5
    limit = max(spread, ROUNDING) * allowed(count, _rate(known))
    shares: Tensor = left / limit
    return shares.fill_diagonal_(-torch.inf)


def _rate(known: Agreement) -> float:
    """Of false alarms of one test: four in each layer, and one for copies."""
    return FALSE_ALARMS / (4 * len(known.lengths) + 1)


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
