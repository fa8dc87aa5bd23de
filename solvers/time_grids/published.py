"""Grids from tables: published noise levels sigma / alpha, and custom tables, greatest level first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np

from ..errors import InputError
from ..registry.ranges import Choice
from ..types.schedule import Schedule
from .base import End, grids
from .noise_levels import RatioGrid, time_of

# Sabour et al. 2024 (arXiv:2404.14507), the ten-step tables that its authors published; the last level is the least
# noise of the model's chain, which most programs replace by 0
AYS_TABLES: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}

# Chen et al. 2024 (arXiv:2405.11326). cifar10: the schedule printed in its authors' README, nodes 0, 19, 27, 33, 39, 45
# and 60 of Karras' grid of 61 levels from 80 to 0.002
# sd15, sdxl: the ten-step tables that front ends call Align Your Steps GITS
GITS_TABLES: dict[str, tuple[float, ...]] = {
    "cifar10": (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002),
    "sd15": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}


@dataclass(frozen=True)
class TableGrid(RatioGrid):
    """A table of noise levels, log-linearly resampled to N steps.

    ``fit=rescale`` maps log(sigma / alpha) linearly from the table's range to the solve's range, so that the grid
    covers it; if the two ranges are equal, the levels do not change. ``fit=keep`` uses the levels unchanged. They must
    then lie in the solve's range, and the solve starts from the greatest level instead of t_max.

    The node that ``end`` adds replaces the table's last level. With ``keep_last`` it follows it, and the table is
    resampled to N levels instead of N + 1: A1111 does so, ComfyUI does not.
    """

    fit: Literal["rescale", "keep"] = field(default="rescale", kw_only=True)
    keep_last: bool = field(default=False, kw_only=True)

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels of the table, greatest first."""
        raise NotImplementedError

    @property
    def zero_replaces_t_min(self) -> bool:
        return not self.keep_last

    def resampled(self, steps: int) -> list[float]:
        """The table at ``steps + 1`` points: log levels, linear in the index; unchanged if it has that many levels."""
        logs = np.log(self.levels)
        places = np.linspace(0, len(logs) - 1, steps + 1)
        if steps == len(logs) - 1:
            return list(self.levels)
        return [float(r) for r in np.exp(np.interp(places, np.arange(len(logs)), logs))]

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        made, top, bottom = self.resampled(steps), self.levels[0], self.levels[-1]
        stretch = math.log(high / low) / math.log(top / bottom)
        return [high * (r / top) ** stretch for r in made]

    def all_times(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        if self.fit == "rescale":
            return super().all_times(schedule, lo, hi, steps)
        if self.adds_last and self.keep_last:
            ratios = self.resampled(steps - 1) if steps > 1 else [self.levels[0]]
        else:
            ratios = self.resampled(steps)[: -1 if self.adds_last else None]
        low, high = schedule(lo).ratio, schedule(hi).ratio
        if not (low * (1 - 1e-9) <= ratios[-1] and ratios[0] <= high * (1 + 1e-9)):
            raise InputError(
                f"{self}: its levels [{ratios[-1]:g}, {ratios[0]:g}] exceed [{low:g}, {high:g}]; use fit=rescale"
            )
        return [time_of(schedule, r, lo, hi) for r in ratios]


@grids.register(
    "ays",
    reference="Sabour et al. 2024, arXiv:2404.14507",
    formula="10 steps tuned to Stable Diffusion 1.5, XL or Video; other N by log-linear interpolation, then 0",
)
@dataclass(frozen=True)
class AYS(TableGrid):
    """Align Your Steps: noise levels that its authors tuned to a model; sigma = 0 replaces the last by default."""

    model: Annotated[str, Choice(AYS_TABLES)] = "sd15"

    @property
    def levels(self) -> tuple[float, ...]:
        return AYS_TABLES[self.model]


@grids.register(
    "gits",
    reference="Chen et al. 2024, arXiv:2405.11326",
    formula="levels found by dynamic programming on a teacher's trajectory; other N by log-linear interpolation",
)
@dataclass(frozen=True)
class GITS(TableGrid):
    """GITS: noise levels that its authors fitted to the shape of a model's trajectories; ends at t_min."""

    end: End = field(default="t_min", kw_only=True)
    model: Annotated[str, Choice(GITS_TABLES)] = "cifar10"

    @property
    def levels(self) -> tuple[float, ...]:
        return GITS_TABLES[self.model]


@grids.register(
    "resampled",
    formula="log r linear between the listed levels, in N steps; then 0",
    note="For levels from elsewhere: a search, a distillation, a different program.",
)
@dataclass(frozen=True)
class Resampled(TableGrid):
    """Custom noise levels, log-linearly resampled to any N; sigma = 0 replaces the last level."""

    table: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = all(a > b for a, b in pairwise(self.table))
        if len(self.table) < 2 or not ordered or not (self.table[-1] > 0 and self.table[0] < math.inf):
            raise InputError("resampled: table needs at least two noise levels, finite, positive, greatest first")

    @property
    def levels(self) -> tuple[float, ...]:
        return self.table
