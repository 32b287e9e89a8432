"""Random nets over a grammar of operators: no spec is wrong before any check, and none has too few symmetries."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.tracing.fuzz import FAILURES, explained, judge
from tests.tracing.grammar import draw

BLOCK = 10


def _fuzz(first: int) -> None:
    kinds: Counter[str] = Counter()
    limits: Counter[str] = Counter()
    failures = []
    for seed in range(first, first + BLOCK):
        program = draw(seed)
        verdict = judge(program)
        kinds[verdict.kind] += 1
        limits.update(set(verdict.limits))
        if verdict.kind in FAILURES:
            failures.append(f"seed {seed}: {explained(program, verdict)}")
    print(f"\nseeds {first} to {first + BLOCK - 1}: {dict(kinds)}, known limits {dict(limits)}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("first", range(0, 50, BLOCK))
def test_random_nets(first: int) -> None:
    _fuzz(first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(50, 550, BLOCK))
def test_many_random_nets(first: int) -> None:
    _fuzz(first)
