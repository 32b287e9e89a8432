"""A reply that may take part in a round, and copies of messages that carry something else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedrebasin.state import State

from .records import Template


@dataclass(frozen=True)
class Reply:
    """A reply that may take part: its model and its weight.

    Args:
        message: as it came.
        node_id: whose reply it is.
        state: its model, which must not be written to.
        num_examples: its weight; 1 where it does not say.
        sizes: the root mean square of each array of floats.
        record: the name of the ArrayRecord that its model came in.
        alongside: its other ArrayRecords that lie along the model's units, as control variates do: state dicts under
            the model's keys, by the records' names.
    """

    message: Message
    node_id: int
    state: State
    num_examples: float
    sizes: Mapping[str, float] = field(default_factory=dict)
    record: str = "arrays"
    alongside: Mapping[str, State] = field(default_factory=dict)

    def arrays(self, template: Template) -> ArrayRecord:
        """The model's arrays as they came, in the global key order: Krum, Bulyan and others pair them by position."""
        record = self.message.content.array_records[self.record]
        return ArrayRecord({key: record[key] for key in template.forms})

    def weighing(self, num_examples: float, metric: str) -> Reply:
        """The reply as if it had claimed another number of examples, under this metric."""
        found = {
            name: MetricRecord({**metrics, metric: float(num_examples)})
            for name, metrics in self.message.content.metric_records.items()
            if metric in metrics
        }
        return replace(self, message=carrying(self.message, found), num_examples=float(num_examples))


def carrying(message: Message, records: Mapping[str, ArrayRecord] | Mapping[str, MetricRecord]) -> Message:
    """A copy of a message that carries other records under some of its names; the message itself is left alone."""
    content = {name: records.get(name, record) for name, record in message.content.items()}
    return containing(message, RecordDict(content))


def containing(message: Message, content: RecordDict) -> Message:
    """A copy of a message with another content; the message itself is left alone."""
    twin = copy.copy(message)
    twin.content = content
    return twin
