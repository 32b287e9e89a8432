"""What is out of all proportion: numbers that would overflow in products, and claims of far more examples than others'.

Bounds this wide are no defence against attackers, who need much less: they keep one reply from ending a round, or from
owning a mean. Where nothing is aligned or calibrated nothing is judged here.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from logging import WARNING

from fedrebasin.errors import RebasinError
from fedrebasin.state import State

from ..flower import log
from .errors import RecordError
from .records import sizes_of
from .reply import Reply
from .updates import looks_like_update

#: How many times the usual root mean square the numbers of a tensor may have, where the usual one is no less than
#: TINY: the others' median or the global model's, whichever is larger.
ABSURD = 1e6
TINY = 1e-6  # a tensor of the others that has barely left zero says nothing of what is usual
#: The root mean square that no tensor may have: products of two such tensors of float32 are far from overflow.
LARGEST = 1e15


class Proportions:
    """What is usual among the replies of a round, and which of them are out of all proportion.

    Args:
        global_state: the model that was sent out; empty where none was seen.
        weighted_by: the metric that weighs a reply.
        max_weight_ratio: how many times the median of the others' examples count; None for any number.
        private: no reply is judged by others, so that bounds are those of the global model, and no weight is capped.
    """

    def __init__(
        self, global_state: State, weighted_by: str, max_weight_ratio: float | None, private: bool = False
    ) -> None:
        self._expected = sizes_of(global_state)
        self._weighted_by = weighted_by
        self._max_weight_ratio = None if private else max_weight_ratio
        self._private = private
        self._sizes: defaultdict[str, list[float]] = defaultdict(list)
        self._weights: list[float] = []
        self.capped = 0

    def see(self, reply: Reply) -> None:
        """Let a reply count among the others."""
        if not self._private:
            for key, size in reply.sizes.items():
                insort(self._sizes[key], size)
            insort(self._weights, reply.num_examples)

    def looks_like_update(self, reply: Reply) -> float | None:
        """See :func:`looks_like_update`."""
        return looks_like_update(reply.sizes, self._expected, reply.state)

    def judge(self, reply: Reply) -> Reply:
        """A reply that was seen, its weight capped.

        Raises:
            RecordError: naming a tensor whose numbers are absurd.
        """
        for key, size in reply.sizes.items():
            usual = max(self._expected.get(key, 0.0), median_of_others(self._sizes[key], size))
            most = min(ABSURD * max(usual, TINY), LARGEST) if usual else LARGEST
            if not size <= most:
                raise RecordError(f"{key}: numbers of about {size:.1e}, where {most:.1e} would be absurd already")
        return self._weighing_less(reply)

    def _weighing_less(self, reply: Reply) -> Reply:
        usual = median_of_others(self._weights, reply.num_examples)
        if self._max_weight_ratio is None or not usual or reply.num_examples <= self._max_weight_ratio * usual:
            return reply
        most = self._max_weight_ratio * usual
        self.capped += 1
        log(
            WARNING,
            "aggregate_train: node %s claims %g examples, others about %g: it counts as %g (max_weight_ratio)",
            *(reply.node_id, reply.num_examples, usual, most),
        )
        return reply.weighing(most, self._weighted_by)


def demand_ratio(ratio: float | None) -> None:
    """Refuse a cap below what is usual.

    Raises:
        RebasinError: if it is less than 1.
    """
    if ratio is not None and not ratio >= 1:
        raise RebasinError(f"max_weight_ratio {ratio}: it must be at least 1, or None for no cap")


def median_of_others(ordered: Sequence[float], own: float) -> float:
    """The median of numbers in ascending order without one of them; 0 where there is no other."""
    others, at = len(ordered) - 1, bisect_left(ordered, own)
    if others < 1:
        return 0.0
    low, high = (ordered[rank + (rank >= at)] for rank in ((others - 1) // 2, others // 2))
    return low + (high - low) / 2
