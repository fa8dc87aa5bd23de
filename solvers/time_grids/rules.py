"""Grids with equal steps of t, lam or a power of the noise level, and explicit lists of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from ..errors import InputError
from ..registry.ranges import Inside, Positive, Range
from ..types.node import Node
from ..types.process import Process
from ..types.schedule import Schedule, as_schedule
from .base import End, Grid, checked, grids, time_range


@grids.register(
    "uniform",
    aliases=("time_uniform",),
    reference="Song et al. 2021, arXiv:2011.13456",
    formula="t_i = t_max + (i / N) (t_min - t_max)",
)
@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps of t; ends at t_min."""

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        return [float(t) for t in np.linspace(hi, lo, steps + 1)]


@grids.register(
    "quadratic",
    aliases=("time_quadratic",),
    reference="Song et al. 2020, arXiv:2010.02502, appendix D.2",
    formula="t_i^(1/power) = t_max^(1/power) + (i / N) (t_min^(1/power) - t_max^(1/power))",
)
@dataclass(frozen=True)
class Quadratic(Grid):
    """Equal steps of t^(1/power), for t >= 0; ends at t_min."""

    power: Positive = 2.0

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        if lo < 0:
            raise InputError(f"quadratic needs times of at least 0, but this range ends at t={lo:g}")
        root = 1 / self.power
        return [float(u) ** self.power for u in np.linspace(hi**root, lo**root, steps + 1)]


@grids.register(
    "logsnr",
    aliases=("exponential",),
    reference="Lu et al. 2022, arXiv:2206.00927, section 3.4",
    formula="lam_i = lam_0 + (i / N) (lam_N - lam_0)",
)
@dataclass(frozen=True)
class LogSNR(Grid):
    """Equal steps of lam = log(alpha / sigma); ends at t_min."""

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        lams = np.linspace(schedule(hi).lam, schedule(lo).lam, steps + 1)
        return [schedule.t_of_lam(float(lam)) for lam in lams]


@grids.register(
    "clock",
    reference="Lou et al. 2023, arXiv:2310.16834, section 5; of masks, Sahoo et al. 2024, arXiv:2406.07524",
    formula="u_i = u_0 + (i / N) (u_N - u_0), u the natural clock",
)
@dataclass(frozen=True)
class Clock(Grid):
    """Equal steps of the natural clock of a process; on a Gaussian path this is lam, and the grid is ``logsnr``.

    The clock of a process may be infinite at one end: at the data, if there are masks, and else where alpha is 0. Then
    all steps but that to this end are equal, and those have together the length log(1 / tail): a share ``tail`` of the
    tokens is still masked in the last step, or alpha is ``tail`` after the first.
    """

    tail: Inside = 0.1

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        if not isinstance(schedule, Process):
            return LogSNR().place(schedule, lo, hi, steps)
        first, last = (schedule.reading(schedule(t)) for t in (hi, lo))
        reach = math.log(1 / self.tail)
        inner = steps - math.isinf(first) - math.isinf(last)
        begin = first if math.isfinite(first) else (last if math.isfinite(last) else reach / 2) - reach
        end = last if math.isfinite(last) else begin + reach
        times = [schedule.time_of(float(u)) for u in np.linspace(begin, end, inner + 1)] if inner >= 0 else []
        return [*([hi] if math.isinf(first) else []), *times, *([lo] if math.isinf(last) else [])]


@grids.register(
    "karras",
    aliases=("edm", "polynomial"),
    reference="Karras et al. 2022, arXiv:2206.00364, eq. 5",
    formula="ratio_i^(1/rho) = ratio_max^(1/rho) + i / (N - 1) (ratio_min^(1/rho) - ratio_max^(1/rho)), then 0",
)
@dataclass(frozen=True)
class Karras(Grid):
    """Equal steps of ratio^(1/rho) with ratio = sigma / alpha, then one step to sigma = 0."""

    end: End = field(default="zero", kw_only=True)
    rho: Annotated[float, Range(1e-2, 1e6)] = 7.0  # outside this range the powers overflow float64

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        root = 1 / self.rho
        roots = np.linspace(schedule(hi).ratio ** root, schedule(lo).ratio ** root, steps + 1)
        return [schedule.t_of_lam(-self.rho * math.log(u)) for u in roots]


@grids.register("explicit", formula="t_i = times[i], or sigma_i / alpha_i = ratios[i]")
@dataclass(frozen=True)
class Explicit(Grid):
    """The listed times, or the listed noise levels sigma / alpha (a last 0 is sigma = 0), from noise to data."""

    times: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.times) == bool(self.ratios):
            raise InputError("explicit needs either times=[...] or ratios=[...]")

    @property
    def fixed(self) -> bool:
        return True

    def intervals(self, steps: int | None) -> int:
        added = self.adds_last and not (self.ratios and self.ratios[-1] == 0)
        count = max(len(self.times), len(self.ratios)) - 1 + added
        if steps not in (None, count):
            raise InputError(f"the explicit grid has {count} steps, not {steps}")
        return count

    def nodes(
        self, schedule: Schedule | Any, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        schedule = as_schedule(schedule)
        lo, hi = time_range(schedule, t_min, t_max)
        self.intervals(steps)
        ratios = self.ratios[:-1] if self.ratios and self.ratios[-1] == 0 else self.ratios
        if any(not r > 0 for r in ratios):
            raise InputError("explicit: ratios must be positive, except for a last 0")
        times = list(self.times or (schedule.t_of_lam(-math.log(r)) for r in ratios))
        slack = 1e-9 * (hi - lo)
        for t in times:
            if not lo - slack <= t <= hi + slack:
                raise InputError(f"the explicit grid's t={t:g} is outside [{lo:g}, {hi:g}]")
        times = [min(max(t, lo), hi) for t in times]
        listed = ratios is not self.ratios  # sigma = 0 is in the list
        nodes = (*schedule.nodes(times), schedule.clean) if listed else self.ended(times, schedule, lo)
        made = checked(nodes, "the explicit grid")
        if made[0].noise_level < made[-1].noise_level:
            raise InputError("the explicit grid is out of order: list it from noise to data")
        return made
