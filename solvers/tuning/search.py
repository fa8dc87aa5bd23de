"""Two searches for a grid: dynamic programming over given nodes, and a direct search that moves the nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def cheapest_path(costs: Array, steps: int) -> list[int]:
    """The path of ``steps`` steps from the first node to the last with the least sum of ``costs`` (n, n).

    >>> costs = np.array([[9, 1, 4, 9], [9, 9, 1, 5], [9, 9, 9, 1], [9, 9, 9, 9.0]])
    >>> cheapest_path(costs, 2), cheapest_path(costs, 3)
    ([0, 2, 3], [0, 1, 2, 3])
    """
    least = np.full(len(costs), math.inf)  # the least cost of a path from the first node to each, in k steps
    least[0] = 0.0
    before = []
    for _ in range(steps):
        totals = least[:, None] + costs
        before.append(totals.argmin(0))
        least = totals.min(0)
    path = [len(costs) - 1]
    for origin in reversed(before):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def descend(
    error: Callable[[Array], float],
    levels: Array,
    start: float,
    high: float,
    low: float,
    runs: int,
    closed: bool = False,
) -> tuple[float, Array]:
    """Moves levels to reduce an error, and returns the least error found and its levels.

    This is the direct search of Hooke and Jeeves (1961, J. ACM 8(2), p. 212-229). It moves one level at a time by a
    share of the distance to its neighbour, which keeps the levels in order. After each pass it repeats the pass's total
    move while this reduces the error. When a pass brings little, it halves the share. A search that follows derivatives
    would fail: with few steps the error is rough, since it jumps when a sample falls to a different mode.

    Args:
        error: the function of the levels to minimise.
        levels: log(sigma / alpha) of the nodes to move (n,), descending.
        start: the error at ``levels``.
        high, low: the levels of the fixed ends.
        runs: the most evaluations of ``error``.
        closed: whether the last level may equal ``low``, which is then not a node of the grid.
    """
    left = runs

    def gaps(trial: Array) -> Array:
        return -np.diff([high, *trial, low])

    def better(trial: Array, than: float) -> float | None:
        nonlocal left
        if left <= 0 or (gaps(trial) < np.minimum(floor, gaps(best))).any():
            return None
        left -= 1
        value = error(trial)
        return value if value < than else None

    least, share = 1e-3 * (high - low) / (len(levels) + 1), 0.45
    floor = np.full(len(levels) + 1, least)  # the least gaps, so that a multistep method never divides by zero
    if closed:
        floor[-1] = 0.0
    best, value = levels.copy(), start
    while share > 0.01 and left > 0:
        origin, before = best.copy(), value
        for k in range(len(best)):
            above, here, below = (high, *best, low)[k : k + 3]
            for way in (above - here, below - here):
                trial = best.copy()
                trial[k] += share * way
                if abs(way) > least and (lower := better(trial, value)) is not None:
                    best, value = trial, lower
                    break
        while value < before:
            trial = best + (best - origin)
            if (lower := better(trial, value)) is None:
                break
            origin, best, value = best, trial, lower
        if value > before * (1 - 1e-3):
            share /= 2
    return value, best
