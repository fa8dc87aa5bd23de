"""The grid ``few`` and the tables of numbers of the solver ``few``, from the file few.json next to this module."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..registry.ranges import Count, Positive
from .base import grids
from .noise_levels import RatioGrid

LEAST_START = 0.25  # of a table's first noise level: below it, a state is not nearly noise


class FewTable(NamedTuple):
    """The numbers of ``few`` at N evaluations, for data of standard deviation 1.

    With y = x / alpha and the predictions D_j of x0, y_n = start_n y_0 + sum_{j < n} weights_nj D_j, n = 0 .. N.

    Attributes:
        ratios: the noise levels sigma / alpha of y_0 .. y_N (N + 1,); the last one is 0.
        start: (N + 1,).
        weights: (N + 1, N), the row n with n numbers that are not zero.
        seconds: the wall time of the tuning.
    """

    ratios: tuple[float, ...]
    start: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def tuned(self) -> int:
        """How many numbers were tuned: inner noise levels, coefficients of the start, and weights."""
        return len(self.ratios) - 2 + len(self.start) - 1 + sum(len(row) for row in self.weights)


@cache
def few_tables() -> Mapping[int, FewTable]:
    """The tables by their number of evaluations."""
    document = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {
        int(nfe): FewTable(
            tuple(part["ratios"]), tuple(part["start"]), tuple(map(tuple, part["weights"])), part["seconds"]
        )
        for nfe, part in document["tables"].items()
    }


@grids.register(
    "few",
    reference="benchmarks/tuning/few.py; the form of the tables: Wang et al. 2025, arXiv:2510.17699",
    formula="r_max, then the levels of the table of N steps times sigma_data, then 0",
    note="For numbers of steps without a table, and on paths without its levels, it is logsnr(end=zero).",
)
@dataclass(frozen=True)
class Few(RatioGrid):
    """The noise levels of the solver ``few``, tuned over a family of models; then sigma = 0.

    Args:
        sigma_data: the standard deviation of the data.
        nfe: the number of steps; given here, it cannot be given elsewhere.
    """

    sigma_data: Positive = 0.5
    nfe: Count | None = None

    @property
    def zero_replaces_t_min(self) -> bool:
        return True

    @property
    def fixed(self) -> bool:
        return self.nfe is not None

    def intervals(self, steps: int | None) -> int:
        if self.nfe is None:
            return super().intervals(steps)
        if steps not in (None, self.nfe):
            raise InputError(f"{self} has {self.nfe} steps: leave out steps={steps}")
        return self.nfe

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        levels = self.levels(high, steps) if self.end == "zero" else None
        if levels is None or not high > levels[0] > levels[-1] > low:
            intervals = steps if self.end == "t_min" else steps - 1  # as logsnr: the step to 0 starts at t_min
            levels = [high * (low / high) ** (i / intervals) for i in range(1, steps)]
        return [high, *levels, low]

    def levels(self, high: float, steps: int) -> list[float] | None:
        """The inner noise levels of the table; None if there is none, or if at ``high`` a state is not nearly noise."""
        table = few_tables().get(steps)
        if table is None or high < LEAST_START * self.sigma_data * table.ratios[0]:
            return None
        return [self.sigma_data * ratio for ratio in table.ratios[1:-1]]
