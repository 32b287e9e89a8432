"""Independent work on several threads: results come in the order given and do not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int = 1) -> list[Result]:
    """``[function(item) for item in items]``, on this many threads."""
    if threads <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1, waiting: int = 0
) -> Iterator[Result]:
    """``map(function, items)`` on several threads, which take no more items in advance than they need.

    Args:
        function: of one item.
        items: taken as there is room for them.
        threads: on which the function runs; with 1, and nothing waiting, it runs on the caller's.
        waiting: items that may be taken beyond one for each thread, so that none runs dry while a result is looked at.

    Returns:
        the results in the order of the items; at most ``threads + waiting`` items and results are held at a time.
    """
    if threads <= 1 and not waiting:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) == threads + waiting:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
