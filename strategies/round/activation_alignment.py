"""Activation matching without server data: clients say how their units go with a reference model's."""

from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any, ClassVar

from torch import nn

from fedrebasin.errors import CalibrationError
from fedrebasin.matching import Alignment, match_relations
from fedrebasin.merging import average, cosine
from fedrebasin.sums import ActivationCorrelation
from fedrebasin.watching import unit_places

from ..flower import log
from ..sums import Question, encode_sums
from .gathering import TIMEOUT, each
from .judges import FitsOrder
from .round import Calibrated, Round, need_merge


@dataclass(frozen=True)
class ActivationAlignment:
    """Align the models anew by what their units do on the clients' data (Git Re-Basin, section 3.1), and average.

    Each client correlates the units of its own model with those of the reference, on its own data; the server pairs
    the units that go together. The reference is the model that the aligner chose, or where it chose none the one that
    agrees best with the mean. What follows (regression, repair) works with the models as they are aligned here. The
    models are averaged by their numbers of examples; one that is robust aggregates them once more.

    Args:
        model: the architecture; its own parameters are neither read nor changed.
        example_inputs: any valid input, to see where units can be seen.
        timeout: seconds to wait for each client.
    """

    model: nn.Module
    example_inputs: Any
    timeout: float = TIMEOUT
    rewrites_weights: ClassVar[bool] = True
    needs_all: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True
    changes_features: ClassVar[bool] = True
    robust: ClassVar[bool] = True

    def __call__(self, round_: Round) -> Calibrated:
        """Align anew.

        Raises:
            CalibrationError: if nothing was aligned, or no client answered.
        """
        merge, spec = need_merge(round_, "activation alignment")
        chosen = max(range(len(merge.states)), key=lambda at: merge.alignments[at].similarity)
        reference = merge.states[chosen]
        places = unit_places(self.model, reference, self.example_inputs, spec)
        statistic = ActivationCorrelation(places, reference)
        states, alignments = list(merge.states), list(merge.alignments)
        left_out = set(range(len(states))) - {chosen}
        for at, sums in each(
            round_,
            lambda position: Question(statistic, encode_sums(merge.states[position])),
            self.timeout,
            judge=FitsOrder(spec, merge.states, reference, statistic),
        ):
            if at == chosen:
                continue
            try:
                step = match_relations(spec, statistic.finish(sums))
            except Exception as error:  # a stranger's sums
                log(WARNING, "activation alignment: left out node %d: %s", round_.replies[at].node_id, error)
                continue
            left_out.discard(at)
            states[at] = step.apply(merge.states[at])
            permutation = step.compose(merge.alignments[at].permutation)
            alignments[at] = Alignment(permutation, cosine(spec, reference, states[at]), merge.alignments[at].history)
        if len(left_out) == len(states) - 1 > 0:
            raise CalibrationError("activation alignment: no client sent correlations")
        again = replace(merge, states=tuple(states), alignments=tuple(alignments))
        merged = (
            average(states, [reply.num_examples for reply in round_.replies])
            if round_.aggregate is None
            else round_.aggregate(again)
        )
        again = replace(again, merged=merged)
        return Calibrated(merged, {"activation-alignment-left-out": float(len(left_out))}, merge=again)
