"""A grid that has the clients trained once and lets several strategies aggregate the same replies."""

import hashlib
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedrebasin import RebasinError

from .inline import copy_records


class ReplayGrid(Grid):
    """Passes messages on to another grid and remembers the replies of round 1.

    The clients of the simulations are functions of the message and their partition. In round 1 every strategy sends
    the same message, so the same replies can be given again; later each strategy has its own trajectory. Replies come
    in the order of the partitions, which no engine and no sampling changes. Requests for sums are passed on each time,
    since every strategy asks about another model; their answers too are handed over in the order of the partitions,
    so that what is added up does not depend on who was fastest.

    Args:
        grid: where the clients are.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._remembered: dict[tuple[int, str], RecordDict] = {}
        self._partitions: dict[int, int] = {}
        self._due: list[str] = []
        self._early: dict[str, Message] = {}

    def first_replies(self) -> list[ArrayRecord]:
        """The clients' arrays after round 1, in the order of the partitions."""
        contents = sorted(self._remembered.values(), key=_partition)
        return [content.array_records["arrays"] for content in contents]

    def set_run(self, run: Any) -> None:
        """As the grid does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The grid's run."""
        return self._grid.run

    def create_message(self, *args: Any, **options: Any) -> Message:
        """As the grid does."""
        return self._grid.create_message(*args, **options)

    def get_node_ids(self) -> Iterable[int]:
        """The grid's nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid does, in the order of the partitions."""
        pushed = []
        for message in sorted(messages, key=lambda message: self._partitions.get(message.metadata.dst_node_id, 0)):
            pushed += list(self._grid.push_messages([message]))
        self._due += [message_id for message_id in pushed if message_id]
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies in the order in which the messages were pushed: one that comes early waits for those before it."""
        wanted = set(message_ids)
        self._due = [message_id for message_id in self._due if message_id in wanted]  # given up: nobody waits for it
        for reply in self._grid.pull_messages(wanted - set(self._early)):
            self._early[reply.metadata.reply_to_message_id] = reply
        ready = []
        while self._due and self._due[0] in self._early:
            ready.append(self._early.pop(self._due.pop(0)))
        return ready

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies from memory where the same message was answered in round 1, else from the clients.

        Raises:
            RebasinError: if a client failed: a comparison without it would compare something else.
        """
        asked = {message.metadata.dst_node_id: message for message in messages}
        keys = {node: (node, _digest(message)) for node, message in asked.items() if _is_first_round(message)}
        unknown = [message for node, message in asked.items() if keys.get(node) not in self._remembered]
        contents: dict[int, RecordDict] = {}
        for reply in self._grid.send_and_receive(unknown, timeout=timeout) if unknown else []:
            if reply.has_error():
                raise RebasinError(f"a client failed: {reply.error.reason}")
            self._partitions[reply.metadata.src_node_id] = _partition(reply.content)
            contents[reply.metadata.src_node_id] = reply.content
        for node, key in keys.items():
            if node in contents:
                self._remembered[key] = contents[node]
            contents[node] = copy_records(self._remembered[key])
        if missing := sorted(set(asked) - set(contents)):
            raise RebasinError(f"{len(missing)} of {len(asked)} clients did not answer")
        by_partition = sorted(contents.items(), key=lambda pair: (_partition(pair[1]), pair[0]))
        return [Message(content, reply_to=asked[node]) for node, content in by_partition]


def _partition(content: RecordDict) -> int:
    """Its partition; replies that carry none stay in the order of the nodes."""
    client = content.config_records.get("client")
    return 0 if client is None else int(str(client["partition-id"]))


def _is_first_round(message: Message) -> bool:
    if message.metadata.message_type != "train":
        return False
    return message.content.config_records["config"]["server-round"] == 1


def _digest(message: Message) -> str:
    digest = hashlib.sha256()
    for name, array in message.content.array_records["arrays"].items():
        digest.update(name.encode())
        digest.update(array.data)
    digest.update(repr(sorted(message.content.config_records["config"].items())).encode())
    return digest.hexdigest()
