"""Which replies may take part in a round: the others are set aside with node id and reason, and the round goes on."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from logging import WARNING

from flwr.app import ArrayRecord, Message, Metadata, RecordDict
from flwr.serverapp.strategy import Strategy

from ..flower import log
from ..traits import find_attribute, weighted_by
from .norms import Proportions
from .records import RecordError, Template
from .reply import Reply

MAX_EXAMPLES = 10**12
FIRST = 3  # replies that wait for one another while they arrive: fewer cannot be judged by the others


@dataclass(frozen=True)
class SetAside:
    """A reply that may not take part, and why."""

    node_id: int
    reason: str


class Screener:
    """Sorts the replies of a round, one by one.

    Args:
        template: the form of the global model.
        strategy: the inner strategy, whose keys and needs count.
        asked: the messages that were sent this round, by node: of their metadata, the ids that the grid gave them. None
            where that is not known: any reply may then be one to them.
        proportions: what is usual, where replies are aligned or calibrated.
    """

    def __init__(
        self,
        template: Template,
        strategy: Strategy,
        asked: Mapping[int, Metadata] | None,
        proportions: Proportions | None = None,
    ) -> None:
        self._template = template
        self._weighted_by = weighted_by(strategy)
        self._proportions = proportions
        self._loss_key = find_attribute(strategy, "train_loss_key", None)
        self._asked = asked
        self._seen: set[int] = set()
        self.bad: list[SetAside] = []
        self.errors: list[Message] = []

    def admit(self, message: Message) -> Reply | None:
        """The reply if it may take part; otherwise it is counted among the bad ones or the errors."""
        node_id = message.metadata.src_node_id
        if message.has_error():
            self.errors.append(message)
            return None
        try:
            if self._asked is not None:
                self._demand_asked(message.metadata, self._asked)
            record, num_examples = _read(message.content, self._weighted_by, self._loss_key)
            state, sizes = self._template.decode_with_sizes(record)
            return Reply(message, node_id, state, num_examples, sizes)
        except RecordError as error:
            self.set_aside(node_id, str(error))
            return None

    def _demand_asked(self, metadata: Metadata, asked: Mapping[int, Metadata]) -> None:
        """Refuse what is no reply to this round's messages, or the second one."""
        node_id = metadata.src_node_id
        if node_id not in asked:
            raise RecordError("a reply from a node that was not asked this round")
        if node_id in self._seen:
            raise RecordError("a second reply from the same node")
        sent = asked[node_id].message_id  # empty where no grid has sent it
        if sent and metadata.reply_to_message_id != sent:
            raise RecordError("a reply to another message than this round's")
        self._seen.add(node_id)

    def set_aside(self, node_id: int, reason: str) -> None:
        """Count a reply as bad, and say why."""
        self.bad.append(SetAside(node_id, reason))
        log(WARNING, "aggregate_train: set aside the reply of node %s: %s", node_id, reason)

    @property
    def capped(self) -> int:
        """Replies that count for less than they claim."""
        return 0 if self._proportions is None else self._proportions.capped

    def majority(self, replies: Iterable[Message]) -> list[Reply]:
        """The good ones of all replies.

        Flower ends the run when their records' names or metrics differ: the form of most of them counts.
        """
        good = [reply for message in replies if (reply := self.admit(message)) is not None]
        forms = Counter(form_of(reply.message.content) for reply in good)
        if len(forms) > 1:
            good = self._of_form(good, forms.most_common(1)[0][0], "most replies'")
        return self._in_proportion(good)

    def arriving(self, replies: Iterable[Message]) -> Iterator[Reply]:
        """The good replies as they come; the first one's form is the form, and its others are those before it."""
        form: tuple[object, ...] | None = None
        waiting: list[Reply] = []
        enough = 1 if self._proportions is None else FIRST
        for message in chain(replies, [None]):
            reply = None if message is None else self.admit(message)
            if message is not None and reply is not None:
                form = form_of(message.content) if form is None else form
                waiting += self._of_form([reply], form, "the first reply's")
            if message is None or len(waiting) >= enough:
                ready, waiting, enough = self._in_proportion(waiting), [], 1
                del message, reply
                while ready:
                    yield ready.pop(0)

    def _of_form(self, replies: Sequence[Reply], form: tuple[object, ...], whose: str) -> list[Reply]:
        kept = []
        for reply in replies:
            if form_of(reply.message.content) == form:
                kept.append(reply)
            else:
                self.set_aside(reply.node_id, f"its records or metrics are named otherwise than {whose}")
        return kept

    def _in_proportion(self, replies: Sequence[Reply]) -> list[Reply]:
        """The replies that are in proportion to one another and to those before them."""
        if self._proportions is None:
            return list(replies)
        for reply in replies:
            self._proportions.see(reply)
        kept = []
        for reply in replies:
            try:
                kept.append(self._proportions.judge(reply))
            except RecordError as error:
                self.set_aside(reply.node_id, str(error))
        return kept


def _read(content: RecordDict, weighted_by: str, loss_key: str | None) -> tuple[ArrayRecord, float]:
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
    return record, float(num_examples)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


def form_of(content: RecordDict) -> tuple[object, ...]:
    """The names of a reply's records and metrics, which Flower's strategies need to be alike."""
    (name, metrics), *_ = content.metric_records.items()
    kinds: Mapping[str, int] = {key: len(value) if isinstance(value, list) else -1 for key, value in metrics.items()}
    return (next(iter(content.array_records)), name, frozenset(kinds.items()))
