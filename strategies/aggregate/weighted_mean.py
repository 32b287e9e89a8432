"""Inner strategies that need no more of the replies than their weighted mean, and the one reply that carries it.

FedAvg and the strategies built on its mean give the same aggregate for the replies and for a single reply that
carries their mean and their total weight. Taking the mean here saves a copy of every model, and lets replies be added
one by one, while others still train.
"""

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedrebasin.state import Mean

from ..replies import Reply, Template, containing
from ..traits import find_attribute, weighted_by


def flower_mean(states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of models, bit for bit as Flower's strategies take it.

    Args:
        states: state dicts with the same keys.
        weights: one for each.
    """
    mean = Mean("averaged", total=sum(weights))
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    return mean.finish()


def mean_metrics(replies: Sequence[Reply], strategy: Strategy) -> MetricRecord:
    """The replies' metrics, aggregated as the inner strategy does it."""
    weight = weighted_by(strategy)
    if not all(any(weight in each for each in reply.message.content.metric_records.values()) for reply in replies):
        return MetricRecord()  # nobody can say how to weigh them
    aggregate = find_attribute(strategy, "train_metrics_aggr_fn", FedAvg().train_metrics_aggr_fn)
    metrics: MetricRecord = aggregate([reply.message.content for reply in replies], weight)
    return metrics


def mean_reply(
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
    metric_name = next(iter(first.content.metric_records), "metrics")
    combined = MetricRecord(dict(metrics))
    combined[weighted_by(strategy)] = float(sum(reply.num_examples for reply in replies))
    return containing(first, RecordDict({replies[0].record: template.encode_mean(mean), metric_name: combined}))
