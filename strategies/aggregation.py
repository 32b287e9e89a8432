"""From replies to the inner strategy's aggregate: with all of them at hand, or one by one as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.strategy import QFedAvg, Strategy
from torch import Tensor

from fedrebasin import Merge

from .alignment_metrics import Tally
from .flower_mean import flower_mean
from .folding import RunningMean, folded, is_the_mean, mean_metrics, needs_only_the_mean
from .records import State, Template
from .screening import Reply, Screener, carrying, form_of, is_a
from .stage import Stage
from .strangers import expecting_fewer, expects_attackers, strangers


@dataclass(frozen=True)
class Aggregate:
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


@dataclass(frozen=True)
class Aggregation:
    """One round's aggregation.

    Args:
        stage: aligns.
        strategy: the inner strategy, which aggregates.
        screener: says which replies may take part.
        template: of the global model.
        global_state: the model that the server sent out; not needed where the stage is idle.
        server_round: Flower's round.
    """

    stage: Stage
    strategy: Strategy
    screener: Screener
    template: Template
    global_state: State
    server_round: int

    def at_once(self, replies: Iterable[Message]) -> Aggregate:
        """Align all good replies, then let the inner strategy aggregate them."""
        good = self.screener.majority(replies)
        if not good:
            return self._nothing()
        merge: Merge | None = None
        mean: Mapping[str, Tensor] | None = None
        tally = Tally()
        if not self.stage.idle:
            merge, mean = self.stage.all_at_once(good, self.global_state, self.server_round, tally)
            if expects_attackers(self.strategy):
                good, merge = self._without_strangers(good, merge)
        if not needs_only_the_mean(self.strategy):
            messages = self._messages(good, merge)
            with expecting_fewer(self.strategy, len(self.screener.bad), len(messages)):
                arrays, metrics = self.strategy.aggregate_train(self.server_round, [*messages, *self.screener.errors])
            return Aggregate(arrays, metrics, tuple(good), merge, self._measured(tally))
        if mean is None:
            mean = flower_mean([reply.state for reply in good], (reply.num_examples for reply in good))
        return self._of_the_mean(good, mean, merge, tally)

    def one_by_one(self, replies: Iterable[Message], workers: int) -> Aggregate:
        """Align and fold in each good reply as it arrives, and let go of it.

        An inner strategy that needs all replies gets them all.
        """
        if not needs_only_the_mean(self.strategy):
            return self.at_once(replies)
        mean, tally = RunningMean(), Tally()
        kept: list[Reply] = []
        admitted = self._admitted(replies)
        for reply, state in self.stage.one_by_one(admitted, self.global_state, self.server_round, workers, tally):
            mean.add(state, reply.num_examples)
            kept.append(_without_arrays(reply))
        return self._of_the_mean(kept, mean.finish(), None, tally) if kept else self._nothing()

    def _without_strangers(self, replies: Sequence[Reply], merge: Merge) -> tuple[list[Reply], Merge]:
        assert self.stage.spec is not None
        found = strangers(self.stage.spec, merge.alignments, merge.states)
        if not found:
            return list(replies), merge
        for position, reason in found.items():
            self.screener.set_aside(replies[position].node_id, reason)
        kept = [position for position in range(len(replies)) if position not in found]
        states = tuple(merge.states[position] for position in kept)
        mean = flower_mean(states, (replies[position].num_examples for position in kept))
        alignments = tuple(merge.alignments[position] for position in kept)
        return [replies[position] for position in kept], Merge(states, alignments, mean, merge.trace)

    def _nothing(self) -> Aggregate:
        """The inner strategy still learns that the round is over: it logs errors, and privacy accountants count."""
        return Aggregate(*self.strategy.aggregate_train(self.server_round, list(self.screener.errors)))

    def _of_the_mean(
        self, replies: Sequence[Reply], mean: Mapping[str, Tensor], merge: Merge | None, tally: Tally
    ) -> Aggregate:
        metrics = mean_metrics(replies, self.strategy)
        measured = self._measured(tally)
        failed = len(self.screener.errors)
        if is_the_mean(self.strategy):  # there is nothing that the strategy would do to it
            log(INFO, "aggregate_train: Received %d results and %d failures", len(replies), failed)
            return Aggregate(self.template.encode_mean(mean), metrics, tuple(replies), merge, measured)
        message = folded(replies, mean, self.template, self.strategy, metrics)
        arrays, _ = self.strategy.aggregate_train(self.server_round, [message, *self.screener.errors])
        return Aggregate(arrays, metrics, tuple(replies), merge, measured)

    def _measured(self, tally: Tally) -> dict[str, float]:
        measured = tally.metrics()
        if measured and self.stage.frames is not None:
            measured["fixed-points"] = self.stage.frames.fixed_points()
        return measured

    def _admitted(self, replies: Iterable[Message]) -> Iterator[Reply]:
        """The good replies as they come; the first one's form is the form."""
        form: tuple[object, ...] | None = None
        for message in replies:
            reply = self.screener.admit(message)
            if reply is None:
                continue
            form = form_of(message.content) if form is None else form
            if form_of(message.content) != form:
                self.screener.set_aside(
                    reply.node_id, "its records or metrics are named otherwise than the first reply's"
                )
                continue
            del message
            yield reply

    def _messages(self, replies: Sequence[Reply], merge: Merge | None) -> list[Message]:
        """What the inner strategy gets: the replies with aligned arrays, in the global key order."""
        as_floats = is_a(self.strategy, QFedAvg)  # it scales its copies of the arrays in place
        forms = self.template.forms
        messages = []
        for position, reply in enumerate(replies):
            if merge is None:
                arrays = reply.arrays(self.template)
            else:
                arrays = self.template.encode(dict(merge.states[position]))
            if as_floats:
                arrays = ArrayRecord(
                    {
                        key: array if forms[key].is_float else Array(array.numpy().astype(float))
                        for key, array in arrays.items()
                    }
                )
            messages.append(carrying(reply.message, arrays))
        return messages


def _without_arrays(reply: Reply) -> Reply:
    """What is kept of a reply that was folded in: its node and its metrics."""
    content = RecordDict(
        {
            name: ArrayRecord() if isinstance(record, ArrayRecord) else record
            for name, record in reply.message.content.items()
        }
    )
    return replace(reply, message=Message(content, reply_to=reply.message), state={})
