"""A probe of the round's permutations: how similar, how far apart, and whether they settle."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from fedrebasin import average
from fedrebasin.analysis import fixed_points
from fedrebasin.spec import Permutation
from fedrebasin.state import State, distance, has_mean, inner, wide

from ..round import Round, need_models
from .schedule import Schedule


class AlignmentProbe:
    """What the alignment did, and whether it settles: fixed points against the round before.

    Args:
        every: run in rounds that this divides.
        seconds: for the spreads, which read all models: ``spread-unaligned`` is left out if it would end after this,
            judged by ``spread``. The rest reads permutations only.
    """

    def __init__(self, every: int = 1, *, seconds: float | None = None) -> None:
        self._schedule = Schedule(every=every, seconds=seconds)
        self._last: dict[int, Permutation] = {}

    def __call__(self, round_: Round) -> Mapping[str, float]:
        """Floats about the round's permutations.

        Returns:
            ``similarity-least``: the smallest cosine of an aligned model with what it was aligned to; ``spread`` and
            ``spread-unaligned``: the root mean square distance of the models to their mean over the mean's length,
            after and before the alignment; ``fixed-share``: units that stay in place, in [0, 1]; ``fixed-since-last``:
            units that the permutation sends where the client's last one sent them. Empty without an alignment.

        Raises:
            CalibrationError: if there was an alignment, of models that the round does not hold.
        """
        if round_.server_round == 1:
            self._last.clear()
        if not self._schedule.due(round_):
            return {}
        if round_.merge is None:
            if round_.spec is not None:
                need_models(round_, type(self).__name__)
            return {}
        alignments = round_.merge.alignments
        now = {reply.node_id: a.permutation for reply, a in zip(round_.replies, alignments, strict=True)}
        measured = {
            "similarity-least": min(alignment.similarity for alignment in alignments),
            "fixed-share": fmean(fixed_points(permutation).share for permutation in now.values()),
        }
        spreads: dict[str, Sequence[State]] = {
            "spread": round_.merge.states,
            "spread-unaligned": [reply.state for reply in round_.replies],
        }
        for name in self._schedule.affordable(spreads):
            measured[name] = _spread(spreads[name], round_.device)
        known = [node_id for node_id in now if node_id in self._last]
        if known:
            measured["fixed-since-last"] = fmean(fixed_points(now[k], self._last[k]).share for k in known)
        self._last.update(now)
        return measured


def _spread(states: Sequence[State], device: torch.device) -> float:
    """The root mean square distance to the mean over the mean's length; one tensor of two models is held at a time."""
    squares = length = 0.0
    for key in (key for key, tensor in states[0].items() if has_mean(tensor)):
        mean = average({key: wide(state[key].to(device))} for state in states)
        squares += fmean(distance(mean, state, [key]) ** 2 for state in states)
        length += inner(mean, mean)
    return math.sqrt(squares / length) if length else 0.0
