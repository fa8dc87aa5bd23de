"""Two searches for a grid: dynamic programming over given nodes, and a direct search that moves nodes freely."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def cheapest_path(costs: Array, steps: int) -> list[int]:
    """The path of ``steps`` steps from the first node to the last whose costs (n, n) sum to the least.

    >>> costs = np.array([[9, 1, 4, 9], [9, 9, 1, 5], [9, 9, 9, 1], [9, 9, 9, 9.0]])
    >>> cheapest_path(costs, 2), cheapest_path(costs, 3)
    ([0, 2, 3], [0, 1, 2, 3])
    """
    least = np.full(len(costs), math.inf)  # of the paths from the first node to each, in k steps
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
    """The least error found by moving levels, and those levels: the direct search of Hooke and Jeeves (1961, J. ACM
    8(2), p. 212-229).

    One level at a time goes a share of the way to its neighbour, which keeps them in order; what helped as a whole is
    then repeated; where little helps any more, the share is halved. The error of few steps is rough (a sample that
    falls to the other side of a divide makes a jump), which leads astray a search that follows derivatives.

    Args:
        levels: log(sigma / alpha) of the nodes to move (n,), descending.
        start: their error.
        high, low: the levels of the fixed ends.
        runs: evaluations of ``error`` that may be made.
        closed: whether the last level may lie on ``low``, which is then no node of the grid.
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
    floor = np.full(len(levels) + 1, least)  # of the gaps, lest a multistep method divide by nothing
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
