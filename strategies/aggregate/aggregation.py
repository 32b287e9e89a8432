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
from fedrebasin.state import Mean

from ..replies import (
    Reply,
    Screener,
    State,
    Template,
    agreed,
    carrying,
    dissent,
    expecting_fewer,
    expects_attackers,
    form_of,
    is_a,
    moving_integers,
    strangers,
)
from .stage import Stage
from .tally import Tally
from .weighted_mean import flower_mean, is_the_mean, mean_metrics, mean_reply, needs_only_the_mean


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
        integers: State = {}
        if not self.stage.idle:
            merge, mean = self.stage.all_at_once(good, self.global_state, self.server_round, tally)
            good, merge, integers = self._agreeing(good, merge)
            if good and expects_attackers(self.strategy):
                good, merge = self._without_strangers(good, merge)
            if not good:
                return self._nothing()
            mean = mean if len(good) == tally.models else merge.merged
        if not needs_only_the_mean(self.strategy):
            messages = self._messages(good, merge)
            with expecting_fewer(self.strategy, len(self.screener.bad), len(messages)):
                arrays, metrics = self.strategy.aggregate_train(self.server_round, [*messages, *self.screener.errors])
            return Aggregate(_with(arrays, integers), metrics, tuple(good), merge, self._measured(tally))
        if mean is None:
            mean = flower_mean([reply.state for reply in good], [reply.num_examples for reply in good])
        return self._of_the_mean(good, {**mean, **integers}, merge, tally, integers)

    def one_by_one(self, replies: Iterable[Message], workers: int) -> Aggregate:
        """Align and fold in each good reply as it arrives, and let go of it.

        An inner strategy that needs all replies gets them all.
        """
        if not needs_only_the_mean(self.strategy):
            return self.at_once(replies)
        mean, tally = Mean("averaged"), Tally()
        kept: list[Reply] = []
        integers: State = {}
        aligned = self.stage.one_by_one(
            self._admitted(replies), self.global_state, self.server_round, workers, tally, self.screener.set_aside
        )
        for reply, state in aligned:
            if not self.stage.idle:
                integers = {key: state[key] for key in moving_integers(self.stage.spec, state)}
            mean.add(state, reply.num_examples)
            kept.append(_without_arrays(reply))
        return (
            self._of_the_mean(kept, {**mean.finish(), **integers}, None, tally, integers) if kept else self._nothing()
        )

    def _agreeing(self, replies: Sequence[Reply], merge: Merge) -> tuple[list[Reply], Merge, State]:
        """The replies whose integers along groups are those of most, or with privacy the global model's; and these."""
        keys = moving_integers(self.stage.spec, merge.states[0])
        if not keys:
            return list(replies), merge, {}
        states = [] if self.stage.private else [dict(state) for state in merge.states]
        integers = agreed(keys, states, self.global_state)
        reasons = [dissent(integers, state) for state in merge.states]
        found = {position: reason for position, reason in enumerate(reasons) if reason}
        return *self._without(replies, merge, found), integers

    def _without_strangers(self, replies: Sequence[Reply], merge: Merge) -> tuple[list[Reply], Merge]:
        assert self.stage.spec is not None
        return self._without(replies, merge, strangers(self.stage.spec, merge.alignments, merge.states))

    def _without(self, replies: Sequence[Reply], merge: Merge, found: Mapping[int, str]) -> tuple[list[Reply], Merge]:
        """The replies but for those at some positions, which are set aside for these reasons."""
        if not found:
            return list(replies), merge
        for position, reason in found.items():
            self.screener.set_aside(replies[position].node_id, reason)
        kept = [position for position in range(len(replies)) if position not in found]
        states = tuple(merge.states[position] for position in kept)
        mean = flower_mean(states, [replies[position].num_examples for position in kept]) if kept else {}
        alignments = tuple(merge.alignments[position] for position in kept)
        return [replies[position] for position in kept], Merge(states, alignments, mean, merge.history)

    def _nothing(self) -> Aggregate:
        """The inner strategy still learns that the round is over: it logs errors, and privacy accountants count."""
        return Aggregate(*self.strategy.aggregate_train(self.server_round, list(self.screener.errors)))

    def _of_the_mean(
        self, replies: Sequence[Reply], mean: State, merge: Merge | None, tally: Tally, integers: State
    ) -> Aggregate:
        metrics = mean_metrics(replies, self.strategy)
        measured = self._measured(tally)
        failed = len(self.screener.errors)
        if is_the_mean(self.strategy):  # there is nothing that the strategy would do to it
            log(INFO, "aggregate_train: Received %d results and %d failures", len(replies), failed)
            mean_arrays = _with(self.template.encode_mean(mean), integers)
            return Aggregate(mean_arrays, metrics, tuple(replies), merge, measured)
        message = mean_reply(replies, mean, self.template, self.strategy, metrics)
        arrays, _ = self.strategy.aggregate_train(self.server_round, [message, *self.screener.errors])
        return Aggregate(_with(arrays, integers), metrics, tuple(replies), merge, measured)

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
        # Numpy subtracts no bools, and QFedAvg scales its copies of the arrays in place.
        kinds = "biu" if is_a(self.strategy, QFedAvg) else "b"
        as_floats = [key for key, form in self.template.forms.items() if form.dtype.kind in kinds]
        messages = []
        for position, reply in enumerate(replies):
            if merge is None:
                arrays = reply.arrays(self.template)
            else:
                arrays = self.template.encode(dict(merge.states[position]))
            if as_floats:
                floats = {key: Array(arrays[key].numpy().astype(float)) for key in as_floats}
                arrays = ArrayRecord({**arrays, **floats})
            messages.append(carrying(reply.message, arrays))
        return messages


def _with(arrays: ArrayRecord | None, integers: State) -> ArrayRecord | None:
    """An aggregate with the integers that the replies agree on, whatever the strategy made of them."""
    if arrays is None or not integers:
        return arrays
    return ArrayRecord({**arrays, **{key: Array(tensor.cpu().numpy()) for key, tensor in integers.items()}})


def _without_arrays(reply: Reply) -> Reply:
    """What is kept of a reply that was folded in: its node and its metrics."""
    content = RecordDict(
        {
            name: ArrayRecord() if isinstance(record, ArrayRecord) else record
            for name, record in reply.message.content.items()
        }
    )
    return replace(reply, message=Message(content, reply_to=reply.message), state={})
