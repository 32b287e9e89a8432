"""From replies to the inner strategy's aggregate: with all of them at hand, or one by one as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import QFedAvg, Strategy

from fedrebasin import Merge

from .alignment_metrics import alignment_metrics, share_moved
from .flower_mean import flower_mean
from .folding import RunningMean, folded, needs_only_the_mean
from .records import State, Template
from .screening import Reply, Screener, carrying, form_of, is_a
from .stage import Stage


@dataclass(frozen=True)
class Aggregation:
    """What came of a round's replies.

    Args:
        arrays: the inner strategy's aggregate, in whatever dtypes it has; None if it has none.
        metrics: the inner strategy's metrics.
        replies: those that took part.
        merge: their aligned models, where they are all at hand and something was aligned.
        measured: what the alignment did.
    """

    arrays: ArrayRecord | None
    metrics: MetricRecord | None
    replies: tuple[Reply, ...] = ()
    merge: Merge | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


def aggregate_at_once(
    stage: Stage,
    strategy: Strategy,
    screener: Screener,
    replies: Iterable[Message],
    template: Template,
    global_state: State,
    server_round: int,
) -> Aggregation:
    """Align all good replies, then let the inner strategy aggregate them."""
    good = screener.majority(replies)
    if not good:
        # The inner strategy still learns that the round is over: it logs errors, and privacy accountants count.
        return Aggregation(*strategy.aggregate_train(server_round, list(screener.errors)))
    merge: Merge | None = None
    measured: dict[str, float] = {}
    if not stage.idle:
        merge, seconds = stage.all_at_once(good, global_state, server_round)
        measured = alignment_metrics(merge, seconds)
        if stage.frames is not None:
            measured["fixed-points"] = stage.frames.fixed_points()
    if not needs_only_the_mean(strategy):
        messages = _messages(good, merge, template, as_floats=is_a(strategy, QFedAvg))
        arrays, metrics = strategy.aggregate_train(server_round, [*messages, *screener.errors])
        return Aggregation(arrays, metrics, tuple(good), merge, measured)
    states = [reply.state for reply in good] if merge is None else merge.states
    mean = flower_mean(states, [reply.num_examples for reply in good])
    message, metrics = folded(good, mean, template, strategy)
    arrays, _ = strategy.aggregate_train(server_round, [message, *screener.errors])
    return Aggregation(arrays, metrics, tuple(good), merge, measured)


def aggregate_one_by_one(
    stage: Stage,
    strategy: Strategy,
    screener: Screener,
    replies: Iterable[Message],
    template: Template,
    global_state: State,
    server_round: int,
    workers: int,
) -> Aggregation:
    """Align and fold in each good reply as it arrives, and let go of it; an inner strategy that needs all gets all."""
    if not needs_only_the_mean(strategy):
        return aggregate_at_once(stage, strategy, screener, replies, template, global_state, server_round)
    mean = RunningMean()
    kept: list[Reply] = []
    similarities: list[float] = []
    moved: list[float] = []
    for reply, state, alignment in stage.one_by_one(_admitted(screener, replies), global_state, server_round, workers):
        mean.add(state, reply.num_examples)
        kept.append(_without_arrays(reply))
        if alignment is not None:
            similarities.append(alignment.similarity)
            moved.append(share_moved([alignment]))
    if not kept:
        return Aggregation(*strategy.aggregate_train(server_round, list(screener.errors)))
    message, metrics = folded(kept, mean.finish(), template, strategy)
    arrays, _ = strategy.aggregate_train(server_round, [message, *screener.errors])
    measured = {}
    if similarities:
        measured = {"similarity": fmean(similarities), "units-moved": fmean(moved)}
    return Aggregation(arrays, metrics, tuple(kept), None, measured)


def _admitted(screener: Screener, replies: Iterable[Message]) -> Iterator[Reply]:
    """The good replies as they come; the first one's form is the form."""
    form: tuple[object, ...] | None = None
    for message in replies:
        reply = screener.admit(message)
        if reply is None:
            continue
        form = form_of(message.content) if form is None else form
        if form_of(message.content) != form:
            screener.set_aside(reply.node_id, "its records or metrics are named otherwise than the first reply's")
            continue
        del message
        yield reply


def _without_arrays(reply: Reply) -> Reply:
    """What is kept of a reply that was folded in: its node and its metrics."""
    content = RecordDict(
        {
            name: ArrayRecord() if isinstance(record, ArrayRecord) else record
            for name, record in reply.message.content.items()
        }
    )
    return replace(reply, message=Message(content, reply_to=reply.message), state={})


def _messages(replies: Sequence[Reply], merge: Merge | None, template: Template, as_floats: bool) -> list[Message]:
    """What the inner strategy gets: the replies with aligned arrays, in the global key order.

    Args:
        replies: the good ones.
        merge: their aligned models; None for the models as they came.
        template: of the global model.
        as_floats: give integers as floats, for QFedAvg, which scales its copies of the arrays in place.
    """
    messages = []
    for position, reply in enumerate(replies):
        arrays = reply.arrays(template) if merge is None else template.encode(dict(merge.states[position]))
        if as_floats:
            arrays = ArrayRecord(
                {
                    key: array if template.forms[key].is_float else Array(array.numpy().astype(float))
                    for key, array in arrays.items()
                }
            )
        messages.append(carrying(reply.message, arrays))
    return messages
