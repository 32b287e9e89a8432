"""Folding: replies become one, where the inner strategy needs no more of them than their weighted mean.

FedAvg and the strategies built on its mean give the same aggregate for the replies and for a single reply that
carries their mean and their total weight. Taking the mean here saves a copy of every model, and lets replies be folded
in one by one, while others still train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from ..replies import Reply, Template
from ..traits import find_attribute


@dataclass
class RunningMean:
    """The weighted mean of models that come one by one: two models' memory, however many there are.

    Sums are kept in float64, so that the order of arrival moves the mean by less than its rounding.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    total: float = 0.0

    def add(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Fold in one model."""
        for key, tensor in state.items():
            if key in self.sums:
                self.sums[key].add_(tensor, alpha=weight)
            else:
                self.sums[key] = tensor.double() * weight
        self.total += weight

    def finish(self) -> dict[str, Tensor]:
        """The mean, in float64."""
        return {key: tensor / self.total for key, tensor in self.sums.items()}


def mean_metrics(replies: Sequence[Reply], strategy: Strategy) -> MetricRecord:
    """The replies' metrics, aggregated as the inner strategy does it."""
    aggregate = find_attribute(strategy, "train_metrics_aggr_fn", FedAvg().train_metrics_aggr_fn)
    metrics: MetricRecord = aggregate([reply.message.content for reply in replies], _weighted_by(strategy))
    return metrics


def folded(
    replies: Sequence[Reply], mean: Mapping[str, Tensor], template: Template, strategy: Strategy, metrics: MetricRecord
) -> Message:
    """One message that stands for all replies.

    Args:
        replies: at least one; their states are not read.
        mean: the weighted mean of their aligned models.
        template: of the global model.
        strategy: the inner strategy.
        metrics: of all replies.
    """
    first = replies[0].message
    (array_name,) = first.content.array_records
    (metric_name,) = first.content.metric_records
    combined = MetricRecord(dict(metrics))
    combined[_weighted_by(strategy)] = float(sum(reply.num_examples for reply in replies))
    return Message(RecordDict({array_name: template.encode_mean(mean), metric_name: combined}), reply_to=first)


def _weighted_by(strategy: Strategy) -> str:
    name: str = find_attribute(strategy, "weighted_by_key", "num-examples")
    return name
