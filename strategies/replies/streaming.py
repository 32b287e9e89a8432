"""Replies one by one, as they arrive."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrebasin import RebasinError

POLL_SECONDS = 0.1


def send_and_stream(grid: Grid, messages: Iterable[Message], timeout: float | None) -> Iterator[Message]:
    """Send messages, then yield each reply once, until all are there or the time is up.

    Args:
        grid: Flower's grid.
        messages: what to send; they are all sent before the first reply is looked at.
        timeout: seconds to wait for the slowest; None for as long as it takes.
    """
    # A list: a generator works in a simulation and fails in a deployment. Ids may be None for a node that is gone.
    waiting = {message_id for message_id in grid.push_messages(list(messages)) if message_id}
    deadline = None if timeout is None else time.monotonic() + timeout
    while waiting and (deadline is None or time.monotonic() < deadline):
        nothing = True
        for reply in grid.pull_messages(waiting):
            nothing = False
            waiting = waiting - {reply.metadata.reply_to_message_id}  # a new set: the grid may still look at the old
            yield reply
        if nothing:
            time.sleep(POLL_SECONDS)


class Arriving(Iterable[Message]):
    """Replies that are let go of as they are read, so that they can be read once.

    Args:
        replies: as they arrive.
    """

    def __init__(self, replies: Iterator[Message]) -> None:
        self._replies: Iterator[Message] | None = replies

    def __iter__(self) -> Iterator[Message]:
        """The replies.

        Raises:
            RebasinError: the second time.
        """
        if self._replies is None:
            raise RebasinError("replies were read before aggregate_train: with streaming=True they can be read once")
        replies, self._replies = self._replies, None
        return replies


class StreamingGrid(Grid):
    """A grid whose training replies come one by one: what ``Strategy.start`` hands on can be read once.

    Args:
        grid: the grid behind it, which does everything else.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies: as they arrive for training messages, a list for all others."""
        sent = list(messages)
        if sent and all(message.metadata.message_type.split(".")[0] == "train" for message in sent):
            return Arriving(send_and_stream(self._grid, sent, timeout))
        return self._grid.send_and_receive(sent, timeout=timeout)

    def set_run(self, run: Any) -> None:
        """As the grid behind it."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid behind it."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid behind it."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid behind it."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid behind it."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid behind it."""
        return self._grid.pull_messages(message_ids)
