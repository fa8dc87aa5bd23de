"""Counts of the network's work: its evaluations and vector-Jacobian products, counted where they happen.

NFE is what a solver asks of a model; one answer may evaluate a network twice, as guidance does, or not at all. The
models that are not made of other models (a ``Denoiser``, a user's object) count their evaluations here, and whoever
differentiates through a model counts the products.

>>> import scoresde, torch
>>> denoiser = scoresde.Denoiser(lambda x, label: x, scoresde.VP())
>>> with counted() as count:
...     _ = denoiser.predict(torch.zeros(3, 2), denoiser.sde(0.5))
>>> count
Count(forwards=3, vjps=0, calls=1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Count:
    """What was counted, over all samples.

    Attributes:
        forwards: evaluations of the network, one for each sample of a batch.
        vjps: vector-Jacobian products through the network, likewise.
        calls: calls of the network, each for a whole batch.
    """

    forwards: int = 0
    vjps: int = 0
    calls: int = 0

    def add(self, other: Count, times: int = 1) -> None:
        """Adds another count, so many times."""
        self.forwards += times * other.forwards
        self.vjps += times * other.vjps
        self.calls += times * other.calls


_COUNT: ContextVar[Count | None] = ContextVar("count", default=None)


@contextmanager
def counted(passed_on: bool = True) -> Iterator[Count]:
    """A block whose evaluations are counted; those around it count them as well, unless ``passed_on`` is false."""
    outer, count = _COUNT.get(), Count()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)
        if passed_on and outer is not None:
            outer.add(count)


def add_forwards(rows: int, times: int = 1) -> None:
    """Counts one call of a network for so many samples, which evaluates it ``times`` times."""
    add(Count(rows * times, 0, 1))


def add_vjps(rows: int) -> None:
    """Counts a vector-Jacobian product through the network for each of so many samples."""
    add(Count(0, rows, 0))


def add(found: Count, times: int = 1) -> None:
    """Adds a count to that of the innermost block, so many times."""
    if (count := _COUNT.get()) is not None:
        count.add(found, times)
