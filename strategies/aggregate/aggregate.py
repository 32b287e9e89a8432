"""What comes of a round's replies."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord

from fedrebasin import Merge
from fedrebasin.state import State

from ..replies import Reply


@dataclass(frozen=True)
class Aggregate:
    """What came of a round's replies.

    Args:
        state: the new global model, in the dtypes of the old one, on the CPU; None where there is none that is finite.
        metrics: the inner strategy's metrics.
        replies: those that took part.
        merge: their aligned models, where they are all at hand and something was aligned.
        measured: what the alignment did.
        arrays: what the inner strategy made, where it is not of the old model's form.
    """

    state: State | None
    metrics: MetricRecord | None
    replies: tuple[Reply, ...] = ()
    merge: Merge | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    arrays: ArrayRecord | None = None
