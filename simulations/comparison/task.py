"""One comparison that is to be run, wherever that is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..app import Progress
from ..config import SimulationConfig
from ..report import Comparison
from .compare import compare


@dataclass(frozen=True)
class Task:
    """A configuration and the strategies that nothing is known of yet.

    Args:
        config: the federation.
        strategies: names.
        how: engine and the like, as :func:`compare` takes them.
        label: which of how many this is, ``"2/4 "``; "" for the only one.
    """

    config: SimulationConfig
    strategies: tuple[str, ...]
    how: Mapping[str, Any]
    label: str


def run_task(task: Task, progress: Progress | None = None) -> Comparison:
    """Run it here; progress is told with the label."""
    report: Progress | None = None
    if progress is not None:

        def report(who: str, done: int, total: int) -> None:
            progress(task.label + who, done, total)

    return compare(task.config, task.strategies, progress=report, **task.how)
