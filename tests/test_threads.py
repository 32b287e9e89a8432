"""Work done ahead: in order, no further ahead than it may, and over when its reader is."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrebasin.threads import ahead

counts = st.integers(0, 7)


@given(counts, st.integers(1, 4), st.integers(0, 3))
def test_it_is_map_and_takes_no_more_in_advance_than_it_may(items: int, threads: int, waiting: int) -> None:
    taken = 0

    def given_one_by_one() -> Iterator[int]:
        nonlocal taken
        for item in range(items):
            taken += 1
            yield item

    found = []
    for result in ahead(lambda item: item * item, given_one_by_one(), threads, waiting):
        assert len(found) < taken <= len(found) + threads + waiting
        found.append(result)
    assert found == [item * item for item in range(items)]


def test_as_many_run_at_a_time_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three wait for it at the same time
    assert sorted(ahead(lambda item: (together.wait(), item)[1], range(6), threads=3)) == list(range(6))


@pytest.mark.parametrize("waiting", [0, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_where_its_result_would(threads: int, waiting: int) -> None:
    results = ahead(lambda item: 6 // (3 - item), range(9), threads, waiting)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reader_that_goes_away_ends_the_work(threads: int) -> None:
    done: list[int] = []
    results = ahead(done.append, range(100), threads, waiting=3)
    next(results)
    results.close()
    assert len(done) <= threads + 3
