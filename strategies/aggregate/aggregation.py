"""From replies to the inner strategy's aggregate: with all of them at hand, or one by one as they arrive."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import ERROR, INFO

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrebasin import Alignment, History, Merge
from fedrebasin.devices import move
from fedrebasin.merging import two_step
from fedrebasin.state import Mean, State

from ..flower import log
from ..replies import (
    FormError,
    RecordError,
    Reply,
    Screener,
    Template,
    Updates,
    agreed,
    demand_sane,
    dissent,
    moving_integers,
)
from ..traits import Traits, traits_of
from .aggregate import Aggregate
from .alignment import ReplyAlignment
from .inner import Made, ask, handed_on, restored, share_another_form, without_arrays
from .settling import without_outliers
from .statistics import averaged_statistics
from .tally import Tally
from .weighted_mean import flower_mean, mean_metrics, mean_reply


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
        updates: where clients send updates.
        judged: whether something else than the inner strategy changes the model: then replies have to be models.
    """

    alignment: ReplyAlignment
    strategy: Strategy
    screener: Screener
    template: Template
    global_state: State
    server_round: int
    updates: Updates | None = None
    judged: bool = True

    @property
    def traits(self) -> Traits:
        """Of the inner strategy."""
        return traits_of(self.strategy)

    def aggregate(self, replies: Iterable[Message], workers: int | None) -> Aggregate:
        """The aggregate; without a model, so that the last good one is kept, if no reply is usable.

        Args:
            replies: in a list, or as they arrive.
            workers: take them one by one, with so many matchings at the same time; None for all at once.

        Raises:
            FormError: if in the first round of a run all replies have one and the same wrong form.
        """
        replies = list(replies) if workers is None else replies
        if not self.judged and self._may_be_of_any_form(replies):
            taken = self.as_they_are(replies)
        else:
            taken = self.at_once(replies) if workers is None else self.one_by_one(replies, workers)
        self.screener.report()
        bad, failed = len(self.screener.bad), len(self.screener.errors)
        if not taken.replies:
            if self.server_round == 1 and (wrong := self.screener.shared_form()):
                raise FormError(f"no reply of the first round can be used: {wrong}")
            log(
                ERROR,
                "aggregate_train: no usable reply in round %d (%d set aside, %d failed); the global model stays",
                *(self.server_round, bad, failed),
            )
        counted = {"replies-set-aside": float(bad)} if taken.measured or bad else {}
        if self.screener.capped:
            counted["weights-capped"] = float(self.screener.capped)
        return replace(taken, measured={**taken.measured, **counted})

    def _may_be_of_any_form(self, replies: Iterable[Message]) -> bool:
        """Whether the inner strategy may take replies that are not of the global model's form.

        Flower's own do where all are of one other form; after the first round something is wrong then.
        """
        if not (self.traits.takes_models and self.template.forms):
            return self.traits.needs_all or not self.template.forms
        return self.server_round == 1 and isinstance(replies, list) and share_another_form(replies, self.template)

    def as_they_are(self, replies: Iterable[Message]) -> Aggregate:
        """Let the inner strategy aggregate all replies, as it would alone, whatever they hold and it gives."""
        messages = self.screener.sane(replies)
        arrays, metrics = self._ask(messages)
        plain = [Reply(each, each.metadata.src_node_id, {}, 1.0) for each in messages if not each.has_error()]
        good = tuple((self.screener.readable(messages) if self.global_state else ()) or plain)
        if arrays is None or self.template.fits(arrays):
            return Aggregate(self._restored(arrays, {}), metrics, good)
        try:
            demand_sane(arrays)
        except RecordError as error:
            log(ERROR, "aggregate_train: %s in the aggregate; the last good global model is kept", error)
            arrays = None
        return Aggregate(None, metrics, good, arrays=arrays)

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
                good, settled, tally = self._without_outliers(good, merge, tally)
                if settled is not merge:  # aligned again
                    good, merge, integers = self._agreeing(good, settled)
            if not good:
                return self._nothing()
            self.alignment.keep(good, merge.alignments)
            mean = merge.merged
            if not merge.states:
                good, merge = [without_arrays(reply) for reply in good], None
        if self.traits.needs_all:
            arrays, metrics = self._ask([*self._handed_on(good, merge), *self.screener.errors])
            state, measured = self._restored(arrays, integers, mean), self.alignment.measured(tally)
            return Aggregate(state, metrics, tuple(good), merge, measured)
        if mean is None or self.updates is not None:
            states = merge.states if merge is not None else [reply.state for reply in good]
            handed = [self._handed(reply, state) for reply, state in zip(good, states, strict=True)]
            mean = flower_mean(handed, [reply.num_examples for reply in good])
        return self._of_the_mean(good, mean, merge, tally, integers)

    def one_by_one(self, replies: Iterable[Message], workers: int) -> Aggregate:
        """Align and fold in each good reply as it arrives, and let go of it.

        An inner strategy that needs all replies gets them all.
        """
        if self.traits.needs_all:
            return self.at_once(replies)
        mean, tally, kept, alignments = Mean("averaged"), Tally(), list[Reply](), list[Alignment]()
        integers: State = {}
        for reply, state, *alignment in self._arriving(replies, workers, tally):
            integers = {key: state[key] for key in self._moving_integers(state)}
            mean.add(self._handed(reply, state), reply.num_examples)
            kept.append(without_arrays(reply))
            alignments += alignment if self.alignment.frames is not None else []
        if not kept or self._mostly_failed(kept, tally):
            return self._nothing()
        if alignments:
            self.alignment.keep(kept, alignments)
        return self._of_the_mean(kept, mean.finish(), None, tally, integers)

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
        """The replies that can be aligned, their models, aligned to none of the barred, and their mean as Flower's."""
        keep_states = (
            two_step(self.alignment.aligner).keep_states
            or self.traits.needs_all
            or self.updates is not None
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

    def _arriving(
        self, replies: Iterable[Message], workers: int, tally: Tally
    ) -> Iterator[tuple[Reply, State] | tuple[Reply, State, Alignment]]:
        """Each good reply, its aligned model, and how that was aligned if it was, as replies arrive."""
        good = self.screener.arriving(replies)
        if self.alignment.idle:
            return ((reply, move(reply.state, self.alignment.device)) for reply in good)
        return self.alignment.aligned(
            good, self.global_state, self.server_round, tally, self.screener.set_aside, workers, equal_integers=True
        )

    def _moving_integers(self, state: State) -> tuple[str, ...]:
        return () if self.alignment.idle else moving_integers(self.alignment.spec, state)

    def _agreeing(self, replies: Sequence[Reply], merge: Merge) -> tuple[list[Reply], Merge, State]:
        """The replies whose integers along groups are those of most, or with privacy the global model's; and these."""
        keys = self._moving_integers(replies[0].state) if replies else ()
        if not keys:
            return list(replies), merge, {}
        states = [] if self.alignment.private else [dict(state) for state in merge.states]
        integers = agreed(keys, states, self.global_state or merge.states[0])
        found = {at: reason for at, state in enumerate(merge.states) if (reason := dissent(integers, state))}
        if not found:
            return list(replies), merge, integers
        kept = self._kept(replies, found)
        good, aligned = [replies[at] for at in kept], tuple(merge.states[at] for at in kept)
        mean = flower_mean(aligned, [reply.num_examples for reply in good]) if kept else {}
        return good, Merge(aligned, tuple(merge.alignments[at] for at in kept), mean, merge.history), integers

    def _without_outliers(self, good: list[Reply], merge: Merge, tally: Tally) -> tuple[list[Reply], Merge, Tally]:
        def again(rest: list[Reply], barred: frozenset[int]) -> tuple[list[Reply], Merge]:
            nonlocal tally
            tally = tally.again()
            return self._merge(rest, tally, barred)

        good, merge = without_outliers(good, merge, self.alignment, self.traits.robust, self._kept, again)
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

    def _restored(self, made: Made, integers: State, mean: State | None = None) -> State | None:
        before = self.global_state if self.updates is not None and self.judged else None
        models = mean if self.updates is None else None
        held = {**averaged_statistics(models, self.alignment, self.template, self.traits), **integers}
        return restored(made, held, self.template, self.server_round, self.strategy, before)

    def _of_the_mean(
        self, replies: Sequence[Reply], mean: State, merge: Merge | None, tally: Tally, integers: State
    ) -> Aggregate:
        mean = mean if self.updates is not None else {**mean, **integers}
        metrics = mean_metrics(replies, self.strategy)
        measured, failed = self.alignment.measured(tally), len(self.screener.errors)
        if self.traits.is_the_mean:  # there is nothing that the strategy would do to it
            log(INFO, "aggregate_train: Received %d results and %d failures", len(replies), failed)
            return Aggregate(self._restored(mean, {}), metrics, tuple(replies), merge, measured)
        message = mean_reply(replies, mean, self.template, self.strategy, metrics)
        arrays, _ = self.strategy.aggregate_train(self.server_round, [message, *self.screener.errors])
        return Aggregate(self._restored(arrays, integers, mean), metrics, tuple(replies), merge, measured)

    def of_models(self, taken: Aggregate, merge: Merge) -> State:
        """What the inner strategy, one that keeps no state, makes of the replies that took part, aligned like this."""
        arrays, _ = self._ask(self._handed_on(taken.replies, merge))
        if arrays is None:
            raise RecordError("the inner strategy makes nothing of the models as they are aligned now")
        return self.template.restore(arrays)

    def _ask(self, messages: Sequence[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return ask(self.strategy, self.server_round, messages, len(self.screener.bad), self.screener.set_aside)

    def _handed(self, reply: Reply, state: State) -> State:
        """What the inner strategy gets of an aligned model."""
        return state if self.updates is None else self.updates.update(reply.node_id, state)

    def _handed_on(self, replies: Sequence[Reply], merge: Merge | None) -> list[Message]:
        return handed_on(replies, merge, self.template, self.traits.floats_only, self.updates)
