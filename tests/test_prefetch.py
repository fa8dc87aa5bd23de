"""Reading ahead: in order, errors in their place, threads that end."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from scoresde.data import Batch, Rows, TensorRows, prefetch
from scoresde.data.prefetch import read_ahead
from solvers import InputError

pytestmark = pytest.mark.quick


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scoresde-read")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_at_most_two_items_per_worker_ahead(workers):
    begun = []

    def read(item):
        begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    for place, result in enumerate(read_ahead(read, iter(range(40)), workers)):
        assert result == place * place
        assert len(begun) <= place + 1 + 2 * workers
    assert sorted(begun) == list(range(40))
    assert threads() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_where_its_result_would_be(workers):
    def read(item):
        if item in (5, 6):
            raise InputError(f"item {item}")
        return item

    results = read_ahead(read, range(20), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="item 5"):
        next(results)
    assert list(results) == []
    assert threads() == []


def test_threads_end_with_their_iterator():
    for end in ("close", "delete"):
        results = read_ahead(lambda item: item, iter(range(10**9)), 2)
        assert next(results) == 0
        assert threads()
        if end == "close":
            results.close()
        del results
        assert threads() == []


def test_an_interpreter_with_an_open_iterator_exits():
    script = """
import itertools, time
from scoresde.data.prefetch import read_ahead
results = read_ahead(lambda item: time.sleep(0.01) or item, itertools.count(), 3)
print(next(results))
held = [results]
held.append(held)  # a circle, which nobody collects before the end
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


class Slow(Rows):
    def __init__(self, rows):
        self.rows = rows

    def batch(self, index):
        time.sleep(0.001 * int(index[0] % 4))
        return self.rows.batch(index)


def test_batches_are_those_of_the_rows():
    rows = TensorRows(torch.randn(30, 2), {"label": torch.arange(30)})
    indices = [torch.randint(0, 30, (7,)) for _ in range(12)]
    for index, batch in zip(indices, prefetch(Slow(rows), indices, 3), strict=True):
        assert isinstance(batch, Batch)
        assert torch.equal(batch.x, rows.x[index])
        assert torch.equal(batch.conditions["label"], index)
