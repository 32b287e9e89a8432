"""Which clients' sums a robust strategy uses: those that do not contradict the others'."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import reduce
from statistics import median
from typing import Generic, Protocol, TypeVar

from fedrebasin.sums import EXAMPLES, Sums, add_sums

FEWEST = 4  # clients among which most can be told from one
MARGIN = 0.5  # of what knowing nothing costs: by less nobody stands out, however alike the others are
DEVIATIONS = 4.0  # median absolute deviations: 2.7 standard deviations

Solution = TypeVar("Solution")
Terms = Mapping[int, Sums]  # by client


class Judge(Protocol):
    """How far each client's sums are from what the others' come to."""

    def terms(self, position: int, sums: Sums) -> Sums:
        """What one client is judged by.

        Args:
            position: of the client among the round's replies.
            sums: valid, and no larger than usual.
        """
        ...

    def contradictions(self, terms: Terms) -> dict[int, float]:
        """By client: 0 where it says what the others say, 1 where these know nothing of its data, more against them."""
        ...


class LeaveOneOut(ABC, Generic[Solution]):
    """Judges each client's sums by what all the others' come to: what it sent has no part in that."""

    def terms(self, position: int, sums: Sums) -> Sums:
        """What one client adds to the total, and what the others' solution is judged by: its sums."""
        return sums

    @abstractmethod
    def solve(self, total: Sums) -> Solution:
        """What the terms of some clients, added up, come to."""

    @abstractmethod
    def loss(self, solution: Solution, terms: Sums) -> float:
        """How badly a solution suits the client with these terms: 0 perfectly, 1 as if nothing were known."""

    def contradictions(self, terms: Terms) -> dict[int, float]:
        """What the others' solution costs each client, on its own sums."""
        total = reduce(add_sums, terms.values())
        return {
            client: self.loss(self.solve({key: tensor - own[key] for key, tensor in total.items()}), own)
            for client, own in terms.items()
        }


class Means:
    """Judges each client's means over its examples by those of each other, of whatever is summed."""

    def terms(self, position: int, sums: Sums) -> Sums:
        """The sums."""
        return sums

    def contradictions(self, terms: Terms) -> dict[int, float]:
        """The median over the others of the squared distance relative to both, of the entry that is furthest away.

        1 where two means are orthogonal or one is much longer, 2 where they are opposite.
        """
        found = {}
        for client, own in terms.items():
            others = [sums for other, sums in terms.items() if other != client]
            keys = [key for key in own if key != EXAMPLES]
            found[client] = max((median(_distance(key, own, sums) for sums in others) for key in keys), default=0.0)
        return found


def contradicting(terms: Terms, judge: Judge) -> dict[int, float]:
    """The clients whose sums contradict the others' far more than these do one another.

    One at a time: while there is one that stands out by :data:`MARGIN` and by :data:`DEVIATIONS` deviations, the
    furthest is left out. Never half of them, and nobody where there are fewer than :data:`FEWEST`.

    Args:
        terms: by client, as :meth:`Judge.terms` gives them.
        judge: of the sums.

    Returns:
        how far each client is that is left out, in the order in which they were.
    """
    kept, found = dict(terms), dict[int, float]()
    while len(kept) >= FEWEST and 2 * (len(found) + 1) < len(terms):
        far = judge.contradictions(kept)
        furthest = max(far, key=lambda client: far[client])
        if not _stands_out(far[furthest], [value for client, value in far.items() if client != furthest]):
            break
        found[furthest] = far[furthest]
        del kept[furthest]
    return found


def _stands_out(value: float, others: Sequence[float]) -> bool:
    usual = median(others)
    return value > usual + max(MARGIN, DEVIATIONS * median(abs(other - usual) for other in others))


def _distance(key: str, one: Sums, other: Sums) -> float:
    a, b = (sums[key].double() / sums[EXAMPLES] for sums in (one, other))
    both = float(a.square().sum() + b.square().sum())
    return float((a - b).square().sum()) / both if both else 0.0
