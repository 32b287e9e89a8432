"""Alignment done again, until nobody is turned towards an outlier."""

from collections.abc import Callable, Mapping, Sequence
from logging import INFO

from fedrebasin import Merge

from ..flower import log
from ..replies import Reply, outliers
from .alignment import ReplyAlignment

ALIGNED_AGAIN = 3  # times at most, while outliers are found

Replies = list[Reply]


def without_outliers(
    good: Replies,
    merge: Merge,
    alignment: ReplyAlignment,
    robust: bool,
    kept: Callable[[Sequence[Reply], Mapping[int, str]], list[int]],
    again: Callable[[Replies, frozenset[int]], tuple[Replies, Merge]],
) -> tuple[Replies, Merge]:
    """The replies, aligned to one that is no outlier; for a robust strategy those that agree, and nobody else.

    A reference that stands out goes first: all were turned towards it, and it says nothing of them.

    Args:
        good: the replies.
        merge: their models, aligned.
        alignment: how that was done.
        robust: whether the inner strategy expects attackers.
        kept: sets replies aside, by position and reason; the positions of the others.
        again: aligns replies; the models of some nodes are no reference.
    """
    assert alignment.spec is not None
    barred = frozenset[int]()
    for _ in range(ALIGNED_AGAIN):
        alike = {at for at, one in enumerate(merge.alignments) if one.similarity >= 1.0}
        references = {at for at in alike if good[at].node_id not in barred}
        if not (robust or (references and alignment.elects)):
            break
        found = outliers(alignment.spec, merge.alignments, merge.states)
        first = {at: why for at, why in found.items() if at in references}
        if not (found if robust else first):
            break
        if robust:
            good = [good[at] for at in kept(good, first or found)]
        else:
            barred |= {good[at].node_id for at in found}
            log(INFO, "aggregate_train: another reference than node %d", good[min(first)].node_id)
        good, merge = again(good, barred)
    return good, merge
