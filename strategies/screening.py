"""Which replies may take part in a round: the others are set aside with node id and reason, and the round goes on."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import QFedAvg, Strategy

from .records import RecordError, State, Template

MAX_EXAMPLES = 10**12


@dataclass(frozen=True)
class Reply:
    """A reply that may take part: its model and its weight."""

    message: Message
    node_id: int
    state: State
    num_examples: float

    def arrays(self, template: Template) -> ArrayRecord:
        """The arrays as they came, in the global key order: Krum, Bulyan and others pair them by position."""
        (record,) = self.message.content.array_records.values()
        return ArrayRecord({key: record[key] for key in template.forms})

    def carrying(self, arrays: ArrayRecord) -> Message:
        """A copy of the message that carries other arrays; the message itself is left alone."""
        name = next(iter(self.message.content.array_records))
        return _with_arrays(self.message, name, arrays)


@dataclass(frozen=True)
class SetAside:
    """A reply that may not take part, and why."""

    node_id: int
    reason: str


@dataclass(frozen=True)
class Screened:
    """The replies of a round: good ones, bad ones, and Flower's own error messages."""

    good: tuple[Reply, ...]
    bad: tuple[SetAside, ...]
    errors: tuple[Message, ...]


def screen(
    replies: Iterable[Message], template: Template, strategy: Strategy, asked: frozenset[int] | None = None
) -> Screened:
    """Sort the replies of a round.

    Args:
        replies: what the grid returned.
        template: the form of the global model.
        strategy: the inner strategy, whose keys and needs count.
        asked: the nodes that were sent a message this round; None if unknown.
    """
    weighted_by = find_attribute(strategy, "weighted_by_key", "num-examples")
    loss_key = find_attribute(strategy, "train_loss_key", None) if is_a(strategy, QFedAvg) else None
    good: list[Reply] = []
    bad: list[SetAside] = []
    errors: list[Message] = []
    seen: set[int] = set()
    for message in replies:
        node_id = message.metadata.src_node_id
        if message.has_error():
            errors.append(message)
            continue
        try:
            if asked is not None and node_id not in asked:
                raise RecordError("a reply from a node that was not asked this round")
            if node_id in seen:
                raise RecordError("a second reply from the same node")
            seen.add(node_id)
            state, num_examples = _read(message.content, template, weighted_by, loss_key)
            good.append(Reply(message, node_id, state, num_examples))
        except RecordError as error:
            bad.append(SetAside(node_id, str(error)))
    return _keep_majority(good, bad, errors)


def unwrap(strategy: object) -> Iterator[object]:
    """A strategy, then the one that it wraps, and so on inwards."""
    found: object = strategy
    while found is not None:
        yield found
        found = getattr(found, "strategy", None)


def find_attribute(strategy: object, name: str, default: Any) -> Any:
    """The attribute of the outermost strategy that has it."""
    return next((getattr(layer, name) for layer in unwrap(strategy) if hasattr(layer, name)), default)


def is_a(strategy: object, kinds: type | tuple[type, ...]) -> bool:
    """Whether a strategy, or one that it wraps, is of one of these classes."""
    return any(isinstance(layer, kinds) for layer in unwrap(strategy))


def _with_arrays(message: Message, name: str, arrays: ArrayRecord) -> Message:
    twin = copy.copy(message)
    twin.content = RecordDict({key: arrays if key == name else record for key, record in message.content.items()})
    return twin


def _read(content: RecordDict, template: Template, weighted_by: str, loss_key: str | None) -> tuple[State, float]:
    if len(content.array_records) != 1:
        raise RecordError(f"{len(content.array_records)} ArrayRecords instead of one")
    if len(content.metric_records) != 1:
        raise RecordError(f"{len(content.metric_records)} MetricRecords instead of one")
    (metrics,) = content.metric_records.values()
    for key, value in metrics.items():
        numbers: Sequence[float] = value if isinstance(value, list) else [value]
        if not all(_is_finite(number) for number in numbers):
            raise RecordError(f"metric {key!r} is not finite")
    num_examples = metrics.get(weighted_by)
    if num_examples is None or isinstance(num_examples, list):
        raise RecordError(f"metric {weighted_by!r} is not a number")
    if not 0 < num_examples <= MAX_EXAMPLES:
        raise RecordError(f"metric {weighted_by!r} is {num_examples}: it must be above 0 and at most {MAX_EXAMPLES}")
    if loss_key is not None:
        loss = metrics.get(loss_key)
        if loss is None or isinstance(loss, list) or loss < 0:
            raise RecordError(f"metric {loss_key!r} is not a loss")
    (record,) = content.array_records.values()
    return template.decode(record), float(num_examples)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


def _keep_majority(good: list[Reply], bad: list[SetAside], errors: list[Message]) -> Screened:
    """Flower ends the run when replies differ in their records' names or metric keys: the majority's form counts."""
    forms = [_form(reply.message.content) for reply in good]
    if len(set(forms)) > 1:
        (usual, _), *_ = Counter(forms).most_common()
        for reply, form in zip(good, forms, strict=True):
            if form != usual:
                bad.append(SetAside(reply.node_id, "its records or metrics are named otherwise than most replies'"))
        good = [reply for reply, form in zip(good, forms, strict=True) if form == usual]
    return Screened(tuple(good), tuple(bad), tuple(errors))


def _form(content: RecordDict) -> tuple[object, ...]:
    (name, metrics), *_ = content.metric_records.items()
    kinds: Mapping[str, int] = {key: len(value) if isinstance(value, list) else -1 for key, value in metrics.items()}
    return (next(iter(content.array_records)), name, frozenset(kinds.items()))
