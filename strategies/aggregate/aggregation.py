"""From replies to the inner strategy's aggregate: with all of them at hand, or one by one as they arrive."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import ERROR, INFO

from flwr.app import Array, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrebasin import History, Merge
from fedrebasin.devices import move
from fedrebasin.merging import two_step
from fedrebasin.state import Mean, State

from ..flower import log
from ..replies import (
    RecordError,
    Reply,
    Screener,
    Template,
    agreed,
    dissent,
    messages,
    moving_integers,
    outliers,
)
from ..traits import Traits, expecting_fewer, traits_of
from .alignment import ReplyAlignment
from .tally import Tally
from .weighted_mean import flower_mean, mean_metrics, mean_reply

ALIGNED_AGAIN = 3  # times at most, while outliers are found


@dataclass(frozen=True)
class Aggregate:
    """What came of a round's replies.

    Args:
        state: the new global model, in the dtypes of the old one, on the CPU; None where there is none that is finite.
        metrics: the inner strategy's metrics.
        replies: those that took part.
        merge: their aligned models, where they are all at hand and something was aligned.
        measured: what the alignment did.
    """

    state: State | None
    metrics: MetricRecord | None
    replies: tuple[Reply, ...] = ()
    merge: Merge | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregation:
    """One round's aggregation.

    Args:
        alignment: of the models.
        strategy: the inner strategy, which aggregates.
        screener: says which replies may take part.
        template: of the global model.
        global_state: the model that the server sent out; not needed where the alignment is idle.
        server_round: Flower's round.
    """

    alignment: ReplyAlignment
    strategy: Strategy
    screener: Screener
    template: Template
    global_state: State
    server_round: int

    @property
    def traits(self) -> Traits:
        """Of the inner strategy."""
        return traits_of(self.strategy)

    def aggregate(self, replies: Iterable[Message], workers: int | None) -> Aggregate:
        """The aggregate; without a model, so that the last good one is kept, if no reply is usable.

        Args:
            replies: in a list, or as they arrive.
            workers: take them one by one, with so many matchings at the same time; None for all at once.
        """
        taken = self.at_once(replies) if workers is None else self.one_by_one(replies, workers)
        bad, failed = len(self.screener.bad), len(self.screener.errors)
        if not taken.replies:
            log(
                ERROR,
                "aggregate_train: no usable reply in round %d (%d set aside, %d failed); the global model stays",
                *(self.server_round, bad, failed),
            )
        counted = {"replies-set-aside": float(bad)} if taken.measured or bad else {}
        if self.screener.capped:
            counted["weights-capped"] = float(self.screener.capped)
        return replace(taken, measured={**taken.measured, **counted})

    def at_once(self, replies: Iterable[Message]) -> Aggregate:
        """Align all good replies, then let the inner strategy aggregate them."""
        good = self.screener.majority(replies)
        if not good:
            return self._nothing()
        merge: Merge | None = None
        mean: Mapping[str, Tensor] | None = None
        tally = Tally()
        integers: State = {}
        if not self.alignment.idle:
            good, merge = self._merge(good, tally)
            if self._mostly_failed(good, tally):
                return self._nothing()
            good, merge, integers = self._agreeing(good, merge)
            if good and merge.states and not self.alignment.private:
                good, merge, tally = self._without_outliers(good, merge, tally)
                good, merge, integers = self._agreeing(good, merge)
            if not good:
                return self._nothing()
            for reply, alignment in zip(good, merge.alignments, strict=True):
                self.alignment.keep(reply, alignment)
            mean = merge.merged
            if not merge.states:
                good, merge = [reply.without_arrays() for reply in good], None
        if self.traits.needs_all:
            aligned = self._messages(good, merge)
            with expecting_fewer(self.strategy, len(self.screener.bad), len(aligned)):
                arrays, metrics = self.strategy.aggregate_train(self.server_round, [*aligned, *self.screener.errors])
            return Aggregate(self._restored(arrays, integers), metrics, tuple(good), merge, self._measured(tally))
        if mean is None:
            mean = flower_mean([reply.state for reply in good], [reply.num_examples for reply in good])
        return self._of_the_mean(good, {**mean, **integers}, merge, tally, integers)

    def one_by_one(self, replies: Iterable[Message], workers: int) -> Aggregate:
        """Align and fold in each good reply as it arrives, and let go of it.

        An inner strategy that needs all replies gets them all.
        """
        if self.traits.needs_all:
            return self.at_once(replies)
        mean, tally = Mean("averaged"), Tally()
        kept: list[Reply] = []
        integers: State = {}
        for reply, state in self._arriving(replies, workers, tally):
            integers = {key: state[key] for key in self._moving_integers(state)}
            mean.add(state, reply.num_examples)
            kept.append(reply.without_arrays())
        if not kept or self._mostly_failed(kept, tally):
            return self._nothing()
        return self._of_the_mean(kept, {**mean.finish(), **integers}, None, tally, integers)

    def _mostly_failed(self, kept: Sequence[Reply], tally: Tally) -> bool:
        """Whether more replies could not be aligned than could, so that these are set aside as well.

        One of these may be the reference that the others cannot be aligned to. With privacy it never is.
        """
        if self.alignment.private or tally.failed <= len(kept):
            return False
        for reply in kept:
            self.screener.set_aside(reply.node_id, f"{tally.failed} other replies could not be aligned with it")
        return True

    def _merge(
        self, replies: Sequence[Reply], tally: Tally, barred: frozenset[int] = frozenset()
    ) -> tuple[list[Reply], Merge]:
        """The replies that can be aligned; their models, aligned, and the mean of these as Flower takes it.

        The models of barred nodes are no reference.
        """
        keep_states = (
            two_step(self.alignment.aligner).keep_states
            or self.traits.needs_all
            or bool(self._moving_integers(replies[0].state))
        )
        total = sum(reply.num_examples for reply in replies)
        mean, kept, alignments, states = Mean("averaged", total), [], [], []
        for reply, state, alignment in replace(self.alignment, barred=barred).aligned(
            replies, self.global_state, self.server_round, tally, self.screener.set_aside
        ):
            mean.add(state, reply.num_examples)
            kept.append(reply)
            alignments.append(alignment)
            if keep_states:
                states.append(state)
        merged = mean.finish() if kept else {}
        if 0 < len(kept) < len(replies):  # the shares of the others go to these
            rest = total / sum(reply.num_examples for reply in kept)
            merged = {key: tensor * rest for key, tensor in merged.items()}
        together = alignments[0].history if kept else History((), tally.seconds, True, "nothing was aligned")
        if any(alignment.history is not together for alignment in alignments):
            together = History((), tally.seconds, True, "aligned to one reference")
        return kept, Merge(tuple(states), tuple(alignments), merged, together)

    def _arriving(self, replies: Iterable[Message], workers: int, tally: Tally) -> Iterator[tuple[Reply, State]]:
        """Each good reply and its aligned model, as replies arrive."""
        good = self.screener.arriving(replies)
        if self.alignment.idle:
            return ((reply, move(reply.state, self.alignment.device)) for reply in good)
        aligned = self.alignment.aligned(
            good, self.global_state, self.server_round, tally, self.screener.set_aside, workers, equal_integers=True
        )
        return ((self.alignment.keep(reply, alignment), state) for reply, state, alignment in aligned)

    def _moving_integers(self, state: State) -> tuple[str, ...]:
        return () if self.alignment.idle else moving_integers(self.alignment.spec, state)

    def _agreeing(self, replies: Sequence[Reply], merge: Merge) -> tuple[list[Reply], Merge, State]:
        """The replies whose integers along groups are those of most, or with privacy the global model's; and these."""
        keys = self._moving_integers(replies[0].state) if replies else ()
        if not keys:
            return list(replies), merge, {}
        states = [] if self.alignment.private else [dict(state) for state in merge.states]
        integers = agreed(keys, states, self.global_state)
        reasons = [dissent(integers, state) for state in merge.states]
        found = {position: reason for position, reason in enumerate(reasons) if reason}
        if not found:
            return list(replies), merge, integers
        kept = self._kept(replies, found)
        good, aligned = [replies[at] for at in kept], tuple(merge.states[at] for at in kept)
        mean = flower_mean(aligned, [reply.num_examples for reply in good]) if kept else {}
        return good, Merge(aligned, tuple(merge.alignments[at] for at in kept), mean, merge.history), integers

    def _without_outliers(self, good: list[Reply], merge: Merge, tally: Tally) -> tuple[list[Reply], Merge, Tally]:
        """The replies, aligned to one that is no outlier; for a robust strategy those that agree, and nobody else.

        A reference that stands out goes first: all were turned towards it, and it says nothing of them.
        """
        assert self.alignment.spec is not None
        robust, barred = self.traits.robust, frozenset[int]()
        for _ in range(ALIGNED_AGAIN):
            references = {at for at, alignment in enumerate(merge.alignments) if alignment.similarity >= 1.0}
            if not (robust or (references and self.alignment.elects)):
                break
            found = outliers(self.alignment.spec, merge.alignments, merge.states)
            first = {at: why for at, why in found.items() if at in references}
            if not (found if robust else first):
                break
            if robust:
                good = [good[at] for at in self._kept(good, first or found)]
            else:
                barred |= {good[at].node_id for at in found}
                log(INFO, "aggregate_train: another reference than node %d", good[min(first)].node_id)
            tally = tally.again()
            good, merge = self._merge(good, tally, barred)
        return good, merge, tally

    def _kept(self, replies: Sequence[Reply], found: Mapping[int, str]) -> list[int]:
        """The positions of the others, once those with a reason are set aside."""
        for at, reason in found.items():
            self.screener.set_aside(replies[at].node_id, reason)
        return [at for at in range(len(replies)) if at not in found]

    def _nothing(self) -> Aggregate:
        """The inner strategy still learns that the round is over: it logs errors, and privacy accountants count."""
        arrays, metrics = self.strategy.aggregate_train(self.server_round, list(self.screener.errors))
        return Aggregate(self._restored(arrays, {}), metrics)

    def _restored(self, aggregate: Mapping[str, Array | Tensor] | None, integers: State) -> State | None:
        """An aggregate in the global dtypes, with the integers that the replies agree on; None if it is not finite."""
        try:
            return None if aggregate is None else self.template.restore({**aggregate, **integers})
        except RecordError as error:
            log(ERROR, "aggregate_train: %s; the last good global model is kept", error)
            return None

    def _of_the_mean(
        self, replies: Sequence[Reply], mean: State, merge: Merge | None, tally: Tally, integers: State
    ) -> Aggregate:
        metrics = mean_metrics(replies, self.strategy)
        measured = self._measured(tally)
        failed = len(self.screener.errors)
        if self.traits.is_the_mean:  # there is nothing that the strategy would do to it
            log(INFO, "aggregate_train: Received %d results and %d failures", len(replies), failed)
            return Aggregate(self._restored(mean, {}), metrics, tuple(replies), merge, measured)
        message = mean_reply(replies, mean, self.template, self.strategy, metrics)
        arrays, _ = self.strategy.aggregate_train(self.server_round, [message, *self.screener.errors])
        return Aggregate(self._restored(arrays, integers), metrics, tuple(replies), merge, measured)

    def _measured(self, tally: Tally) -> dict[str, float]:
        measured = tally.metrics()
        if measured and self.alignment.frames is not None:
            measured["fixed-points"] = self.alignment.frames.fixed_points()
        return measured

    def of_models(self, taken: Aggregate, states: Sequence[State]) -> State:
        """What the inner strategy, one that keeps no state, makes of the replies that took part, aligned like this."""
        assert taken.merge is not None
        aligned = self._messages(taken.replies, replace(taken.merge, states=tuple(states)))
        with expecting_fewer(self.strategy, len(self.screener.bad), len(aligned)):
            arrays, _ = self.strategy.aggregate_train(self.server_round, aligned)
        if arrays is None:
            raise RecordError("the inner strategy makes nothing of the models as they are aligned now")
        return self.template.restore(arrays)

    def _messages(self, replies: Sequence[Reply], merge: Merge | None) -> list[Message]:
        """What the inner strategy gets: the replies with aligned arrays, in the global key order."""
        states = None if merge is None else merge.states
        return messages(replies, states, self.template, self.traits.floats_only)
