"""Run: what lasts longer than a round, and no longer than one run of a strategy."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedrebasin import PermutationSpec, RebasinError

from ..flower import log
from ..replies import RecordError, Template, Updates, model_in
from .frames import Frames
from .parts import absent, of_a_part

OTHER_MODELS = (
    "nodes are sent other models than the global one, and all replies are aligned to one: if these are models of "
    "clusters or of single nodes, use a strategy for each, or aligner=Identity()"
)


@dataclass
class Run:
    """The state of one run: made anew by ``start``, handed from round to round, looked at afterwards.

    Args:
        spec: the permutation spec, with its sizes once a model was seen, of what is sent.
        frames: the nodes' own permutations, if they have any.
        identity: a random name, which its checkpoints bear; a run that was resumed keeps the one that it had.
        started: whether Flower's loop is the strategy's own.
        inside: whether another strategy's loop has begun instead: it asked for a summary.
        done: rounds that an earlier process did, in a run that was resumed.
        arrays: the model that was sent out last, or is to be; empty while none was seen.
        template: its form, or that of replies without one.
        absent: what the spec knows and the first model did not have, counters left out: it stays with the clients.
        asked: of the round's messages, with the ids that the grid gives them. None before the first round is
            configured: nobody can say then who was asked.
        sent: the model that each node was sent, in the server's order of units.
        sent_two: nodes that were sent two models that differ.
        said: what users were told once, by kind.
        grid: what they were sent through.
        beta: the inverse temperature that was found last.
        metrics: of training, by round.
    """

    spec: PermutationSpec | None
    frames: Frames | None
    identity: str = field(default_factory=lambda: secrets.token_hex(8))  # nodes are sampled with another generator
    started: bool = False
    inside: bool = False
    done: int = 0
    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    template: Template = field(default_factory=lambda: Template({}))
    absent: tuple[str, ...] = ()
    asked: Sequence[Metadata] | None = None
    sent: dict[int, ArrayRecord] = field(default_factory=dict)
    sent_two: set[int] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    grid: Grid | None = None
    beta: float | None = None
    metrics: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def number(self, server_round: int) -> int:
        """The round's number in the whole run; Flower's loop counts from where it was resumed."""
        return server_round + (self.done if self.started else 0)

    def say(self, kind: str, level: int, text: str) -> None:
        """Log what users should know, once."""
        if kind not in self.said:
            self.said.add(kind)
            log(level, "aggregate_train: %s", text)

    def see(self, arrays: ArrayRecord, quiet: bool = False, as_it_is: bool = False) -> None:
        """Learn the global model; the spec's keys become the model's, and the first model's are all.

        Args:
            arrays: the server's own model: what replies hold restricts nothing.
            quiet: whether nothing is aligned, so that there is nothing to say of a part.
            as_it_is: nothing will be done to it: it may be whatever the inner strategy understands.

        Raises:
            RecordError: if it cannot be merged.
            SpecError: if the spec does not fit it.
        """
        self._learn(arrays, not self.arrays, quiet, as_it_is)
        self.arrays = ArrayRecord(dict(arrays))  # shares the bytes; a deep copy fails once the record was sent

    def seeing(self, replies: Iterable[Message], as_it_is: bool = False) -> Iterable[Message]:
        """The replies; where no round was configured, as hooks are called by hand, the first one has the form."""
        if self.arrays or self.asked is not None:
            return replies
        found = list(replies)
        records = (record for one in found if not one.has_error() for record in one.content.array_records.values())
        if (first := next(records, None)) is not None:
            self._learn(first, as_it_is=as_it_is)
        return found

    def _learn(
        self, arrays: ArrayRecord, may_be_a_part: bool = False, quiet: bool = True, as_it_is: bool = False
    ) -> None:
        try:
            self.template = Template.of(arrays)
        except RecordError:
            if not as_it_is:
                raise
            self.template = Template({})
            return
        if self.spec is not None:
            like = self.template.empty()
            spec = self.spec.rename_like(like)
            if may_be_a_part and (left_out := absent(spec, like)):
                self.absent = tuple(key for key in left_out if spec.shapes[key])
                spec = of_a_part(spec, like, self.frames is not None, quiet)
            self.spec = spec.bind(like)

    def ask(self, messages: list[Message], arrays: ArrayRecord, grid: Grid, quiet: bool = False) -> list[Message]:
        """Remember what goes to whom in a round; the messages as they are to be sent.

        Args:
            messages: of the inner strategy.
            arrays: the global model.
            grid: that they are sent through.
            quiet: whether nothing is aligned, so that nodes may be sent models of their own.
        """
        self.asked = [message.metadata for message in messages]
        self.sent, self.sent_two = {}, set()
        for message in messages:
            node_id, records = message.metadata.dst_node_id, message.content.array_records
            itself = next((name for name, record in records.items() if record is arrays), "")
            if name := model_in(records, self.template, itself):
                first = self.sent.setdefault(node_id, records[name])
                if first is not records[name] and first != records[name]:
                    self.sent_two.add(node_id)
        if not quiet and any(not _are_same(record, arrays) for record in self.sent.values()):
            self.say("sent", WARNING, OTHER_MODELS)
        self.grid = grid
        return self.in_own_order(messages)

    def updates(self) -> Updates:
        """What the round's updates are updates of.

        Raises:
            RebasinError: if nobody was sent anything, or a node two models.
        """
        if not self.arrays:
            raise RebasinError('sends="update": call configure_train first, which says what the updates are of')
        if self.sent_two:
            raise RebasinError(
                f'sends="update": node {min(self.sent_two)} was sent two models in one round; which of them an '
                "update is of cannot be told: send each node one, or let clients send models"
            )
        return Updates(self.template, self.sent, self.arrays, {} if self.frames is None else self.frames.by_node)

    def in_own_order(self, messages: list[Message]) -> list[Message]:
        """Messages with the model, each in the order of units of the node that it goes to."""
        return messages if self.frames is None else self.frames.outgoing(messages, self.template)

    def completed(self, result: Result, last: ArrayRecord) -> Result:
        """Flower's result of the rounds after a resume, with those before it and with the rounds' true numbers.

        Args:
            result: of Flower's loop; it is changed.
            last: the model that the loop began with.
        """
        for record in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        ):
            shifted = {self.number(number): metrics for number, metrics in record.items()}
            record.clear()
            if record is result.train_metrics_clientapp:
                before = (number for number in sorted(self.metrics) if number <= self.done)
                record.update({number: MetricRecord(dict(self.metrics[number])) for number in before})
            record.update(shifted)
        if not result.arrays:
            result.arrays = last
        return result


def _are_same(record: ArrayRecord, arrays: ArrayRecord) -> bool:
    return record is arrays or all(key in arrays and arrays[key].data == array.data for key, array in record.items())
