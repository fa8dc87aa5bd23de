"""Which rows of a benchmark are the best: the one with the best value, and all that are tied with it.

Rows share their seeds and the parts of the samples from which intervals come. The spread of the difference of two rows
is therefore that of paired samples, which is smaller than that of two intervals: see ``difference``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Protocol

from solvers.libraries import library

from .metrics import HIGHER, Estimate


class Scored(Protocol):
    """The attributes of a row that decide its place."""

    @property
    def nfe_budget(self) -> int | None: ...
    @property
    def metrics(self) -> dict[str, Estimate]: ...
    def score(self, name: str) -> Estimate | None: ...


def difference(a: Estimate, b: Estimate, level: float = 0.95) -> tuple[Estimate, bool]:
    """The estimate a - b, with an interval, and whether the interval is that of paired samples.

    It is a - b plus or minus Student's quantile times the standard deviation of the differences from the same parts of
    the samples. Estimates without parts, or from other numbers of parts, are treated as independent: the lengths of
    their intervals are added in squares.
    """
    value = a.value - b.value
    if len(a.again) == len(b.again) > 1:
        apart = [p - q for p, q in zip(a.again, b.again, strict=True)]
        reach = float(library("scipy.stats").t.ppf(0.5 + level / 2, len(apart) - 1)) * stdev(apart)
        return Estimate(value, value - reach, value + reach), True
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - low, value + high), False


def leaders(rows: Sequence[Scored], name: str) -> dict[int, list[int]]:
    """The places of the best rows at each budget that several rows have: the best one, then those tied with it.

    A row is tied with the best if the interval of their paired difference contains 0. Without parts of the samples, as
    in rows that are read from a file, a row is tied if the value of either lies in the interval of the other.
    """
    found: dict[int, list[int]] = {}
    sign = -1 if name in HIGHER else 1
    for budget in dict.fromkeys(row.nfe_budget for row in rows if row.nfe_budget is not None):
        scored = [(s, k) for k, row in enumerate(rows) if row.nfe_budget == budget and (s := finite(row.score(name)))]
        if len(scored) < 2:
            continue
        scored.sort(key=lambda pair: sign * pair[0].value)
        best = scored[0][0]
        found[budget] = [k for score, k in scored if score is best or tied(score, best)]
    return found


def tied(score: Estimate, best: Estimate) -> bool:
    """Whether two estimates are not distinguished, see ``leaders``."""
    apart, paired = difference(score, best)
    if paired:
        return apart.low <= 0 <= apart.high
    return score.low <= best.value <= score.high or best.low <= score.value <= best.high


def marks(rows: Sequence[Scored]) -> list[list[str]]:
    """For each row, the metrics in which it is the best of its budget or tied with it."""
    names = dict.fromkeys([*(name for row in rows for name in row.metrics), "error"])
    found: list[list[str]] = [[] for _ in rows]
    for name in names:
        for places in leaders(rows, name).values():
            for place in places:
                found[place].append(name)
    return found


def finite(score: Estimate | None) -> Estimate | None:
    """The estimate; None if there is none, or if no axis can show it (NaN, inf, 1e200)."""
    return score if score and all(abs(part) < 1e100 for part in (score.value, score.low, score.high)) else None
