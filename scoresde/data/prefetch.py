"""Reading ahead in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from torch import Tensor

from .rows import Batch, Rows

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """``read`` of each item, in their order; threads read up to two items per worker ahead.

    An error is raised where its item's result would be. When the iterator ends, is closed or is deleted, reads that
    have begun are completed and no others begin.

    Args:
        workers: how many threads; with 0, each item is read when it is needed.
    """
    if workers == 0:
        yield from map(read, items)
        return
    remaining, ahead = iter(items), deque[Future[R]]()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scoresde-read")
    try:
        ahead.extend(pool.submit(read, item) for item in islice(remaining, 2 * workers))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(read, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch(rows: Rows, indices: Iterable[Tensor], workers: int = 2) -> Iterator[Batch]:
    """The batches of some indices (B,), in order; see ``read_ahead``."""
    return read_ahead(rows.batch, indices, workers)
