"""A reply that may take part in a round, and copies of messages that carry something else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

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

    def without_arrays(self) -> Reply:
        """What is kept of a reply that was folded in: its node and its metrics."""
        content = RecordDict(
            {
                name: ArrayRecord() if isinstance(record, ArrayRecord) else record
                for name, record in self.message.content.items()
            }
        )
        return replace(self, message=Message(content, reply_to=self.message), state={})


def carrying(message: Message, arrays: ArrayRecord) -> Message:
    """A copy of a message that carries another model; the message itself is left alone."""
    (name,) = message.content.array_records
    return _with(message, name, arrays)


def messages(
    replies: Sequence[Reply], states: Sequence[State] | None, template: Template, floats_only: bool = False
) -> list[Message]:
    """The replies as an inner strategy gets them, with arrays in the global key order.

    Args:
        replies: of the round.
        states: the models that they carry instead; None for their own.
        template: of the global model.
        floats_only: whether the strategy cannot take integers.
    """
    kinds = "biu" if floats_only else "b"  # numpy subtracts no bools
    as_floats = [key for key, form in template.forms.items() if form.dtype.kind in kinds]
    found = []
    for position, reply in enumerate(replies):
        arrays = reply.arrays(template) if states is None else template.encode(dict(states[position]))
        floats = {key: Array(arrays[key].numpy().astype(float)) for key in as_floats}
        found.append(carrying(reply.message, ArrayRecord({**arrays, **floats}) if floats else arrays))
    return found


def _with(message: Message, name: str, instead: ArrayRecord | MetricRecord) -> Message:
    twin = copy.copy(message)
    twin.content = RecordDict({key: instead if key == name else record for key, record in message.content.items()})
    return twin
