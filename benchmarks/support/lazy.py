"""A federation that never is in memory as a whole, and how much of it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedrebasin.simulations import InlineGrid


class LazyGrid(InlineGrid):
    """Makes each reply when it is pulled, as clients that end one after the other would."""

    def __init__(self, nodes: int, make_reply: Callable[[Message], Message]) -> None:
        super().__init__(ClientApp(), nodes)
        self._make_reply = make_reply
        self._sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            self._pushed += 1
            message.metadata.__dict__["_message_id"] = str(self._pushed)
            self._sent[str(self._pushed)] = message
        return list(self._sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        found = next((message_id for message_id in self._sent if message_id in wanted), None)
        return [] if found is None else [self._make_reply(self._sent.pop(found))]


def resident(peak: bool = False) -> float:
    """The resident size in MB, or the largest one since it was last forgotten."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) / 1024


def forget_peak() -> float:
    """What is resident now, from where the peak is counted anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident(peak=True)
