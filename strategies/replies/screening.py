"""Which replies may take part in a round: the others are set aside with node id and reason, and the round goes on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from logging import WARNING

from flwr.app import Message, Metadata
from flwr.serverapp.strategy import Strategy

from fedrebasin.errors import some

from ..flower import log
from .errors import FormError, RecordError
from .norms import Proportions
from .reading import Reader
from .records import Template
from .reply import Reply
from .unknown import demand_sane
from .updates import Updates

NAMED = 5  # metrics in a line of the log: their names are strangers'
FIRST = 3  # replies that wait for one another while they arrive: fewer cannot be judged by the others


@dataclass(frozen=True)
class SetAside:
    """A reply that may not take part, and why.

    Args:
        node_id: whose it is.
        reason: in a line.
        advice: what to do where every reply has that reason; empty where it lies in its numbers and not in its form.
    """

    node_id: int
    reason: str
    advice: str = ""


class Screener:
    """Sorts the replies of a round, one by one.

    Args:
        template: the form of the global model.
        strategy: the inner strategy, whose keys and traits count.
        asked: of the messages that were sent this round, with the ids that the grid gave them. None where that is not
            known: any reply may then be one to them.
        proportions: what is usual, where replies are aligned or calibrated.
        updates: where clients send updates.
        say: is told once a run what users should know, by kind.
    """

    def __init__(
        self,
        template: Template,
        strategy: Strategy,
        asked: Iterable[Metadata] | None,
        proportions: Proportions | None = None,
        updates: Updates | None = None,
        say: Callable[[str, int, str], None] | None = None,
    ) -> None:
        self._say = say or (lambda _, level, text: log(level, "aggregate_train: %s", text))
        self._reader = Reader(template, strategy, updates, self._say)
        self._proportions = proportions
        self._updates = updates
        self._asked = None if asked is None else _by_node(asked)
        self._answered: Counter[tuple[int, str]] = Counter()
        self.bad: list[SetAside] = []
        self.errors: list[Message] = []

    def admit(self, message: Message) -> Reply | None:
        """The reply if it may take part; otherwise it is counted among the bad ones or the errors."""
        if message.has_error():
            self.errors.append(message)
            return None
        try:
            if self._asked is not None:
                self._demand_answer(message.metadata, self._asked)
            return self._reader.read(message)
        except RecordError as error:
            self._refuse(message, error)
            return None

    def sane(self, replies: Iterable[Message]) -> list[Message]:
        """All replies in the order that they came in, whatever they hold, but for bytes and floats that are no numbers.

        For inner strategies that may understand any form, where nothing is aligned: they get what they would get alone.
        """
        kept = []
        for message in replies:
            try:
                if message.has_error():
                    self.errors.append(message)
                else:
                    for record in message.content.array_records.values():
                        demand_sane(record)
                kept.append(message)
            except RecordError as error:
                self._refuse(message, error)
        return kept

    def readable(self, messages: Iterable[Message]) -> list[Reply]:
        """Those of these messages that carry a model, for probes; the others are not counted as bad."""
        found = []
        for message in messages:
            try:
                found += [] if message.has_error() else [self._reader.read(message)]
            except RecordError:
                continue
        return found

    def set_aside(self, node_id: int, reason: str, advice: str = "") -> None:
        """Count a reply as bad, and say why."""
        self.bad.append(SetAside(node_id, reason, advice))
        log(WARNING, "aggregate_train: set aside the reply of node %s: %s", node_id, reason)

    def shared_form(self) -> str | None:
        """What is wrong with the form of every reply, and what to do; None where it is not one thing for all."""
        advice = {each.advice for each in self.bad}
        if len(advice) != 1 or "" in advice or len(self.bad) < len(self.errors):
            return None
        return f"{self.bad[0].reason}: {self.bad[0].advice}"

    @property
    def capped(self) -> int:
        """Replies that count for less than they claim."""
        return 0 if self._proportions is None else self._proportions.capped

    def majority(self, replies: Iterable[Message]) -> list[Reply]:
        """The good ones of all replies.

        Flower ends the run when their records' names or metrics differ: the form of most of them counts. What the model
        is called counts always: a strategy may read that record of every reply, and another one was not looked at so.
        """
        good = [reply for message in replies if (reply := self.admit(message)) is not None]
        forms = Counter(map(self._reader.form_of, good))
        if len(forms) > 1:
            good = self._of_form(good, forms.most_common(1)[0][0], "most replies'")
        return self._in_proportion(good)

    def arriving(self, replies: Iterable[Message]) -> Iterator[Reply]:
        """The good replies as they come; the first one's form is the form, and its others are those before it."""
        form: object = None
        waiting: list[Reply] = []
        enough = 1 if self._proportions is None else FIRST
        for message in chain(replies, [None]):
            reply = None if message is None else self.admit(message)
            if reply is not None:
                form = self._reader.form_of(reply) if form is None else form
                waiting += self._of_form([reply], form, "the first reply's") if self._reader.demands_form else [reply]
            if message is None or len(waiting) >= enough:
                ready, waiting, enough = self._in_proportion(waiting), [], 1
                del message, reply
                while ready:
                    yield ready.pop(0)

    def report(self) -> None:
        """Say which metrics were not finite."""
        if found := self._reader.not_finite:
            named = some([f"{key!r} of {count} replies" for key, count in found.most_common()], NAMED)
            log(WARNING, "aggregate_train: metrics that are not finite go on as they came: %s", named)

    def _demand_answer(self, metadata: Metadata, asked: Mapping[int, Sequence[Metadata]]) -> None:
        """Refuse what does not answer one of this round's messages, each of which has one answer."""
        node_id = metadata.src_node_id
        if node_id not in asked:
            raise RecordError("a reply from a node that was not asked this round")
        sent = [each.message_id for each in asked[node_id]]
        known = all(sent)  # empty where no grid has sent it
        answered = metadata.reply_to_message_id if known else ""
        if self._answered[node_id, answered] >= (1 if known else len(sent)):
            raise RecordError("a second reply from the same node")
        if known and answered not in sent:
            raise RecordError("a reply to another message than this round's")
        self._answered[node_id, answered] += 1

    def _refuse(self, message: Message, error: RecordError) -> None:
        advice = error.advice if isinstance(error, FormError) else ""
        self.set_aside(message.metadata.src_node_id, str(error), advice)

    def _of_form(self, replies: Sequence[Reply], form: object, whose: str) -> list[Reply]:
        kept = []
        for reply in replies:
            if self._reader.form_of(reply) == form:
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
            share = None if self._updates else self._proportions.looks_like_update(reply)
            if share is not None:
                self._say(
                    "update",
                    WARNING,
                    f"what node {reply.node_id} sent is far shorter than the model, at most {share:.2g} of it in every "
                    'large tensor, and is taken for a model all the same: if clients send updates, say sends="update"',
                )
            try:
                kept.append(self._proportions.judge(reply))
            except RecordError as error:
                self.set_aside(reply.node_id, str(error))
        return kept


def _by_node(asked: Iterable[Metadata]) -> dict[int, list[Metadata]]:
    found: dict[int, list[Metadata]] = {}
    for metadata in asked:
        found.setdefault(metadata.dst_node_id, []).append(metadata)
    return found
