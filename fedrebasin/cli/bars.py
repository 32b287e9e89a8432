"""Progress of long work, on standard error; standard output is for results."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY = 5.0


class Bars:
    """A progress bar for everyone who is at work, gone at the end; without a terminal a line every few seconds.

    Args:
        every: seconds between lines.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._every = every
        self._ended = threading.Event()
        self._began = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._tasks:
            self._progress.stop()

    def __call__(self, who: str, done: int, total: int | None) -> None:
        """Show how much is done, and of how much; None where nobody knows."""
        if not self._tasks:
            self._start()  # only now, so that an error before any work is one line and nothing else
        if who not in self._tasks:
            self._tasks[who] = self._progress.add_task(who, total=total)
        self._progress.update(self._tasks[who], completed=done, total=total)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._progress.console.print(message, soft_wrap=True, highlight=False)

    def _start(self) -> None:
        if self._progress.console.is_terminal:
            self._progress.start()
            return
        self._began = time.monotonic()
        threading.Thread(target=self._say_lines, daemon=True).start()

    def _say_lines(self) -> None:
        while not self._ended.wait(self._every):
            tasks = self._progress.tasks
            shown = [task for task in tasks if not task.finished] or tasks[-1:]
            parts = [f"{task.description} {task.completed:.0f}/{task.total or '?'}" for task in shown]
            self.say(f"{time.monotonic() - self._began:.0f} s: {'; '.join(parts)}")
