"""Run: what lasts longer than a round, and no longer than one run of a strategy."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedrebasin import PermutationSpec

from ..flower import log
from ..replies import Template
from .frames import Frames


@dataclass
class Run:
    """The state of one run: made anew by ``start``, handed from round to round, looked at afterwards.

    Args:
        spec: the permutation spec, with its sizes once a model was seen.
        frames: the nodes' own permutations, if they have any.
        identity: a random name, which its checkpoints bear; a run that was resumed keeps the one that it had.
        started: whether Flower's loop is the strategy's own.
        inside: whether another strategy's loop has begun instead: it asked for a summary.
        done: rounds that an earlier process did, in a run that was resumed.
        arrays: the model that was sent out last.
        template: its form.
        asked: the messages of the round, by node: of their metadata, the ids that the grid gave them.
        grid: what they were sent through.
        beta: the inverse temperature that was found last.
        advised: whether something was suggested in the log, which is done once.
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
    asked: Mapping[int, Metadata] = field(default_factory=dict)
    grid: Grid | None = None
    beta: float | None = None
    advised: bool = False
    metrics: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def number(self, server_round: int) -> int:
        """The round's number in the whole run; Flower's loop counts from where it was resumed."""
        return server_round + (self.done if self.started else 0)

    def advise(self, sentence: str) -> None:
        """Log a suggestion, the first one of a run."""
        if sentence and not self.advised:
            self.advised = True
            log(WARNING, "%s", sentence)

    def see(self, arrays: ArrayRecord) -> None:
        """Learn the form of the global model; the spec's keys become the model's.

        Raises:
            RecordError: if it cannot be merged.
            SpecError: if the spec does not fit it.
        """
        self.template = Template.of(arrays)
        if self.spec is not None:
            like = self.template.empty()
            self.spec = self.spec.rename_like(like).bind(like)

    def ask(self, messages: list[Message], arrays: ArrayRecord, grid: Grid) -> list[Message]:
        """Remember what goes out in a round, and to whom; the messages as they are to be sent."""
        self.arrays = ArrayRecord(dict(arrays))  # shares the bytes; a deep copy fails once the record was sent
        self.asked = {message.metadata.dst_node_id: message.metadata for message in messages}
        self.grid = grid
        return self.in_own_order(messages, arrays)

    def in_own_order(self, messages: list[Message], arrays: ArrayRecord) -> list[Message]:
        """Messages with the model, each in the order of units of the node that it goes to."""
        return messages if self.frames is None else self.frames.outgoing(messages, arrays, self.template)

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
            record.update(shifted)
        for number in range(1, self.done + 1):
            if number in self.metrics:
                result.train_metrics_clientapp[number] = MetricRecord(dict(self.metrics[number]))
        if not result.arrays:
            result.arrays = last
        return result
