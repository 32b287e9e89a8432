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
        num_examples: its weight.
        sizes: the root mean square of each array of floats.
    """

    message: Message
    node_id: int
    state: State
    num_examples: float
    sizes: Mapping[str, float] = field(default_factory=dict)

    def arrays(self, template: Template) -> ArrayRecord:
        """The arrays as they came, in the global key order: Krum, Bulyan and others pair them by position."""
        (record,) = self.message.content.array_records.values()
        return ArrayRecord({key: record[key] for key in template.forms})

    def weighing(self, num_examples: float, metric: str) -> Reply:
        """The reply as if it had claimed another number of examples, under this metric."""
        ((name, metrics),) = self.message.content.metric_records.items()
        record = MetricRecord({**metrics, metric: float(num_examples)})
        return replace(self, message=_with(self.message, name, record), num_examples=float(num_examples))


def carrying(message: Message, arrays: ArrayRecord) -> Message:
    """A copy of a message that carries another model; the message itself is left alone."""
    (name,) = message.content.array_records
    return _with(message, name, arrays)


def containing(message: Message, content: RecordDict) -> Message:
    """A copy of a message with another content; the message itself is left alone."""
    twin = copy.copy(message)
    twin.content = content
    return twin


def _with(message: Message, name: str, instead: ArrayRecord | MetricRecord) -> Message:
    content = {key: instead if key == name else record for key, record in message.content.items()}
    return containing(message, RecordDict(content))
