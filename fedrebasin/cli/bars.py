"""Progress of long work, on standard error; standard output is for results."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bars:
    """A progress bar for everyone who is at work, gone at the end."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tasks:
            self._progress.stop()

    def __call__(self, who: str, done: int, total: int | None) -> None:
        """Show how much is done, and of how much; None where nobody knows."""
        if who not in self._tasks:
            self._progress.start()  # only now, so that an error before any work is one line and nothing else
            self._tasks[who] = self._progress.add_task(who, total=total)
        self._progress.update(self._tasks[who], completed=done, total=total)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._progress.console.print(message, soft_wrap=True, highlight=False)
