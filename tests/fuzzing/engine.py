"""Fuzzing: input made worse and worse is accepted with a sane result or refused in a line, and nothing else happens."""

from __future__ import annotations

import logging
import random
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedrebasin import RebasinError

from .mutating import LARGEST

try:
    import resource
except ImportError:  # on Windows, where memory is not limited
    resource = None  # type: ignore[assignment]

CORPUS = Path(__file__).parent / "corpus"
ROOM = 2**30  # bytes that a case may ask for, all allocations of a claimed size are beyond that
PATIENCE = 60  # seconds of the processor after which a case hangs, however busy the machine is
ACCEPTED, CANNOT_TRAVEL = "accepted", "cannot travel"


class CannotTravel(Exception):  # noqa: N818
    """The input is none that Flower's messages or a file could carry."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        name: of the folder of its corpus.
        seeds: inputs to begin with.
        check: takes an input: it returns if that is accepted and the result is sane, raises a ``RebasinError`` if it is
            refused, ``CannotTravel`` if it is no input at all. Whatever else it raises is a finding.
        mutate: an input made worse.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], object]
    mutate: Callable[[bytes, random.Random], bytes]

    @property
    def corpus(self) -> list[bytes]:
        """What is kept in the tests: inputs that once were found to matter."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]


@dataclass
class Report:
    """What fuzzing has seen.

    Args:
        outcomes: how often each kind of outcome came; refusals by their text without names and numbers.
        findings: what must not happen, each with the input.
        slowest: seconds of the processor of one case.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    findings: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0

    @property
    def cases(self) -> int:
        """How many."""
        return sum(self.outcomes.values())


def fuzz(
    target: Target,
    seed: int,
    going_on: Callable[[Report], bool],
    before: Callable[[bytes], object] = lambda data: None,
) -> Report:
    """Check the corpus and the seeds, then changed ones; who comes to a new outcome is changed further.

    Args:
        target: what is fuzzed.
        seed: of the changes.
        going_on: whether another case is wanted.
        before: told of every input before it is tried, which may end the process.
    """
    rng, report = random.Random(seed), Report()
    pool = [*target.seeds(), *target.corpus]
    with logging_from(logging.CRITICAL):
        for data in pool:
            before(data)
            _try(target, data, report)
        while going_on(report):
            data = target.mutate(rng.choice(pool), rng)[:LARGEST]
            before(data)
            if _try(target, data, report):
                pool.append(data)
    return report


@contextmanager
def logging_from(level: int) -> Iterator[logging.Logger]:
    """Flower's logger, which says only what is as grave as this."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(level)
    try:
        yield logger
    finally:
        logger.setLevel(before)


def assert_nothing_found(target: Target, cases: int, seed: int = 0) -> Report:
    """Of so many cases; and both happened, acceptance and refusal."""
    report = fuzz(target, seed, lambda report: report.cases < cases and not report.findings)
    for what, data in report.findings.items():
        raise AssertionError(f"{target.name}: {what}\n{data[:2000]!r}")
    assert report.outcomes.get(ACCEPTED), report.outcomes
    assert len(report.outcomes) > 3, report.outcomes
    return report


def _try(target: Target, data: bytes, report: Report) -> bool:
    """Whether what happened is new."""
    started = time.process_time()
    try:
        with limited():
            target.check(data)
        outcome = ACCEPTED
    except CannotTravel:
        outcome = CANNOT_TRAVEL
    except RebasinError as error:
        outcome, text = _kind_of(error), str(error)
        if "\n" in text.strip() or not text.strip():
            report.findings.setdefault(f"more than a line: {outcome}", data)
        if "MemoryError" in text or "allocate" in text:
            report.findings.setdefault(f"memory was asked for before the size was checked: {outcome}", data)
    except Exception as error:
        outcome = _kind_of(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        report.findings.setdefault(f"{outcome} in {Path(last.filename).name}:{last.lineno}", data)
    report.slowest = max(report.slowest, time.process_time() - started)
    report.outcomes[outcome] = report.outcomes.get(outcome, 0) + 1
    return report.outcomes[outcome] == 1


def _kind_of(error: Exception) -> str:
    """An error without what differs from case to case."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "...", str(error))
    text = re.sub(r"-?\d[\d.e+-]*|\bnan\b|\binf\b", "0", text)
    return f"{type(error).__name__}: {' '.join(text.split())[:80]}"


class HangsError(BaseException):
    """A case does not end."""


@contextmanager
def limited() -> Iterator[None]:
    """No more memory than now and some room, and an end; where the operating system can do that."""
    if resource is None:
        yield
        return

    def hangs(*_: object) -> None:
        raise HangsError(f"a case takes more than {PATIENCE} s of the processor")

    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else None
    handler = signal.signal(signal.SIGPROF, hangs)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    if used is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
