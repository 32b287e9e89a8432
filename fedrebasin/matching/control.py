"""When to stop, and who is told how it goes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedrebasin.matching.alignment import History
from fedrebasin.matching.prepared import scaled

Progress = Callable[[int, float], None]


@dataclass
class Control:
    """A clock, a record of the objective, and the user's wishes about both.

    Args:
        seconds: the time budget; None for none.
        progress: called with the number of the sweep or round and the objective after it.
        threads: how many threads may solve assignments.
        exponent: what is reported is the objective times two to this power, see :class:`Problem`.
        certificate: why nothing better can be found, where that is known.
    """

    seconds: float | None = None
    progress: Progress | None = None
    threads: int = 1
    exponent: int = 0
    certificate: str = ""
    converged: bool = False
    objectives: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def remaining(self) -> float | None:
        """Seconds left of the time budget; None where there is none."""
        return None if self.seconds is None else max(0.0, self.seconds - self.elapsed)

    @property
    def expired(self) -> bool:
        """Whether the time budget is spent."""
        return self.seconds is not None and self.elapsed >= self.seconds

    @property
    def spent(self) -> str:
        """The reason that a history gives where the time budget ended the work."""
        return f"the time budget of {self.seconds:g} s was spent"

    def report(self, objective: float) -> None:
        """Record the best objective after a sweep (the first one: at the start)."""
        objective = max([objective, *self.objectives[-1:]])
        self.objectives.append(objective)
        if self.progress is not None:
            self.progress(len(self.objectives) - 1, scaled(objective, self.exponent))

    def history(self) -> History:
        """What is known when it is over."""
        if self.certificate:
            reason = self.certificate
        elif self.converged:
            reason = "no group can be improved any more"
        elif self.expired:
            reason = self.spent
        else:
            reason = f"stopped after {len(self.objectives) - 1} sweeps"
        objectives = tuple(scaled(value, self.exponent) for value in self.objectives)
        return History(objectives, self.elapsed, self.converged, reason)
