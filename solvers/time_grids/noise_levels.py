"""Grids that place noise levels ratio = sigma / alpha: the levels are the same on every Gaussian path.

In the formulas, ``r_max`` and ``r_min`` are the ratios at t_max and t_min. By default the last of the N steps goes to
sigma = 0, and the rule places the N levels before it. With ``end=t_min`` the rule places all N + 1 levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from ..errors import InputError
from ..libraries import library
from ..registry.ranges import Count, Inside, Positive, Range, Share
from ..types.schedule import Schedule
from .base import End, Grid, grids
from .beta_schedules import OFFSET, cosine, integral, time_of_integral


@dataclass(frozen=True)
class RatioGrid(Grid):
    """A rule that places noise levels sigma / alpha."""

    end: End = field(default="zero", kw_only=True)

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        """``steps + 1`` noise levels from ``high`` down to ``low``."""
        raise NotImplementedError

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        low, high = (node.ratio for node in schedule.nodes([lo, hi]))
        return [hi, *(time_of(schedule, r, lo, hi) for r in self.ratios(low, high, steps)[1:-1]), lo]


def time_of(schedule: Schedule, ratio: float, lo: float, hi: float) -> float:
    """The time of a noise level, clipped to [lo, hi]."""
    return min(max(schedule.t_of_lam(-math.log(ratio)), lo), hi)


@grids.register(
    "polyexponential",
    reference="Crowson, k-diffusion, get_sigmas_polyexponential",
    formula="log r_i = log r_min + (1 - i / (N - 1))^rho (log r_max - log r_min), then 0",
    note="rho=1 is logsnr.",
)
@dataclass(frozen=True)
class Polyexponential(RatioGrid):
    """Steps of log(sigma / alpha) by a power rho; rho > 1 takes more steps at low noise; then sigma = 0."""

    rho: Positive = 1.0

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        left = (1 - np.arange(steps + 1) / steps) ** self.rho
        return [float(r) for r in np.exp(math.log(low) + left * math.log(high / low))]


@grids.register(
    "beta",
    reference="Lee et al. 2024, arXiv:2407.12173",
    formula="r_i = r_min + ppf(1 - i / (N - 1)) (r_max - r_min), ppf the quantiles of Beta(a, b), then 0",
    note="on=time places t instead, as ComfyUI does: t_i = t_min + ppf(1 - i / N) (t_max - t_min), i < N, then 0.",
)
@dataclass(frozen=True)
class Beta(RatioGrid):
    """Quantiles of a Beta(a, b) law in sigma / alpha, or in t, dense at both ends for a, b < 1; then sigma = 0."""

    a: Positive = 0.6
    b: Positive = 0.6
    on: Literal["ratio", "time"] = "ratio"

    @property
    def zero_replaces_t_min(self) -> bool:
        return self.on == "time"

    def _shares(self, steps: int) -> list[float]:
        return [float(q) for q in library("scipy.stats").beta.ppf(1 - np.arange(steps + 1) / steps, self.a, self.b)]

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        return [low + q * (high - low) for q in self._shares(steps)]

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        if self.on == "ratio":
            return super().place(schedule, lo, hi, steps)
        return [lo + q * (hi - lo) for q in self._shares(steps)]


@grids.register(
    "laplace",
    reference="Hang et al. 2024, arXiv:2407.03297; ComfyUI's LaplaceScheduler",
    formula="log r_i = mu - beta sign(1/2 - u) log(1 - 2 |1/2 - u|), u = i / (N - 1), within the range; then 0",
    note="Levels beyond the range coincide at its ends, which is an error from about N = 400.",
)
@dataclass(frozen=True)
class Laplace(RatioGrid):
    """Quantiles of a Laplace law in log(sigma / alpha), dense around sigma / alpha = exp(mu); then sigma = 0."""

    mu: float = 0.0
    beta: Positive = 0.5

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        sides = [1 - 2 * i / steps for i in range(1, steps)]  # > 0 above the median
        logs = [self.mu - self.beta * math.copysign(math.log1p(-abs(side)), -side) for side in sides]
        return [high, *(min(max(math.exp(u), low), high) for u in logs), low]


@grids.register(
    "karras_exponential",
    reference="Karras et al. 2022, arXiv:2206.00364, eq. 5; a schedule of Stable Diffusion front ends",
    formula="r_i = (1 - w) karras_i + w logsnr_i, w = blend (1 - i / N), i < N, then 0",
    note="The extension of that name also starts at 1.1 r_max, multiplies the last level by 0.9 and has no step to 0.",
)
@dataclass(frozen=True)
class KarrasExponential(RatioGrid):
    """Karras' levels, blended at high noise with geometric ones; then sigma = 0."""

    rho: Annotated[float, Range(1e-2, 1e6)] = 7.0
    blend: Share = 0.3

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        karras = np.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps + 1) ** self.rho
        weights = self.blend * (1 - np.arange(steps + 1) / (steps + (self.end != "t_min")))
        return [float(r) for r in (1 - weights) * karras + weights * np.geomspace(high, low, steps + 1)]


@grids.register(
    "kl_optimal",
    reference="Sabour et al. 2024, arXiv:2404.14507, the case of Gaussian data",
    formula="r_i = d tan((1 - i / (N - 1)) atan(r_max / d) + i / (N - 1) atan(r_min / d)), d = sigma_data, then 0",
)
@dataclass(frozen=True)
class KLOptimal(RatioGrid):
    """The grid with the least KL divergence on Gaussian data of standard deviation ``sigma_data``; then sigma = 0."""

    sigma_data: Positive = 1.0

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        angles = np.linspace(math.atan(high / self.sigma_data), math.atan(low / self.sigma_data), steps + 1)
        return [self.sigma_data * math.tan(angle) for angle in angles]


@grids.register(
    "vp",
    reference="Karras et al. 2022, arXiv:2206.00364, table 1 and appendix C.1; k-diffusion, get_sigmas_vp",
    formula="r = sqrt(exp(beta_d u^2 / 2 + beta_min u) - 1), u in equal steps between the ends of the range; then 0",
    note="eps_s refits beta_d and beta_min to the range: r_max is at u = 1 and r_min at u = eps_s.",
)
@dataclass(frozen=True)
class VPTime(RatioGrid):
    """Noise levels at equal time steps of a VP path, used on any path; then sigma = 0."""

    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    eps_s: Inside | None = None

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        first, last = (2 * math.log(math.hypot(1, r)) if r > 1 else math.log1p(r * r) for r in (high, low))
        beta_d, beta_min, first_u, last_u = self.beta_d, self.beta_min, 1.0, self.eps_s
        if last_u is None:
            first_u, last_u = (float(time_of_integral(end, beta_min, beta_d)) for end in (first, last))
        else:  # beta_d u^2 / 2 + beta_min u = first at u = 1, last at u = eps_s
            beta_d = 2 * (first - last / last_u) / (1 - last_u)
            beta_min = first - 0.5 * beta_d
        times = np.linspace(first_u, last_u, steps + 1)
        return [math.sqrt(math.expm1(integral(u, beta_min, beta_d))) for u in times]


@grids.register(
    "ve",
    reference="Karras et al. 2022, arXiv:2206.00364, table 1",
    formula="r_i^2 = r_max^2 (r_min^2 / r_max^2)^(i / (N - 1)), then 0",
    equals=("logsnr(end=zero)",),
)
@dataclass(frozen=True)
class VEGeometric(RatioGrid):
    """Geometric noise levels, as on the VE path; then sigma = 0."""

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        return [high * (low / high) ** (i / steps) for i in range(steps + 1)]


@grids.register(
    "iddpm",
    reference="Karras et al. 2022, arXiv:2206.00364, table 1 and appendix C.3",
    formula="u_(j-1) = sqrt((u_j^2 + 1) / max(abar_(j-1) / abar_j, c_1) - 1), u_M = 0; every (L - 1) / (N - 1)-th of "
    "the L levels in the range, then 0",
    note="The first and the last level are the ends of the range.",
)
@dataclass(frozen=True)
class IDDPM(RatioGrid):
    """Levels of a cosine chain of ``num_train_timesteps`` steps, evenly spaced by index; then sigma = 0."""

    num_train_timesteps: Count = 1000
    c_1: Inside = 0.001
    c_2: Positive = OFFSET

    def levels(self) -> list[float]:
        """The levels of the chain, u_0 > u_1 > ... > u_(M-1)."""
        count, level, levels = self.num_train_timesteps, 0.0, []
        kept = cosine(count, self.c_2)[::-1].tolist()
        for j in range(count, 0, -1):
            level = math.sqrt((level**2 + 1) / max(kept[j - 1] / kept[j], self.c_1) - 1)
            levels.append(level)
        return levels[::-1]

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        inside = [u for u in self.levels() if low <= u <= high]
        if len(inside) < steps + 1:
            raise InputError(f"iddpm has {len(inside)} levels in this range, too few for {steps + 1}; use fewer steps")
        return [inside[round(i * (len(inside) - 1) / steps)] for i in range(steps + 1)]


@dataclass(frozen=True)
class FlowGrid(RatioGrid):
    """A rule in u = sigma / (alpha + sigma), the time of a rectified flow; r = u / (1 - u)."""

    def flow_times(self, low: float, high: float, steps: int) -> Sequence[float]:
        """``steps + 1`` flow times from ``high`` down to ``low``."""
        raise NotImplementedError

    def ratios(self, low: float, high: float, steps: int) -> Sequence[float]:
        times = self.flow_times(low / (1 + low), high / (1 + high), steps)
        return [u / (1 - u) for u in times]


@grids.register(
    "linear_quadratic",
    reference="Genmo 2024, Mochi 1, linear_quadratic_schedule",
    formula="u = (1 - c(i / N)) u_max, c linear up to threshold_noise, then quadratic up to 1, where sigma = 0",
)
@dataclass(frozen=True)
class LinearQuadratic(FlowGrid):
    """Small equal steps of u = sigma / (alpha + sigma), then quadratically growing steps, down to sigma = 0."""

    threshold_noise: Inside = 0.025
    linear_steps: Count | None = None

    @property
    def zero_replaces_t_min(self) -> bool:
        return True

    def flow_times(self, low: float, high: float, steps: int) -> Sequence[float]:
        floor = 0.0 if self.end == "zero" else low
        return [floor + (1 - c) * (high - floor) for c in self._course(steps)]

    def _course(self, steps: int) -> list[float]:
        """The fraction of the range covered after each step, from 0 to 1; its slope is continuous."""
        linear = steps // 2 if self.linear_steps is None else self.linear_steps
        if steps == 1:
            return [0.0, 1.0]
        if linear >= steps:
            raise InputError(f"linear_quadratic: linear_steps={linear} must be less than the number of steps, {steps}")
        slope, rest = self.threshold_noise / linear, steps - linear
        bend = (1 - self.threshold_noise - slope * rest) / rest**2
        course = [slope * i + bend * max(0, i - linear) ** 2 for i in range(steps)]
        return [*course, 1.0]


@grids.register(
    "bong_tangent",
    reference="ClownsharkBatwing, RES4LYF, bong_tangent_scheduler",
    formula="u = u_min + c(i) (u_max - u_min), c two arcs of arctan: from 1 to middle at i = pivot (N + 2) - 1, to 0",
)
@dataclass(frozen=True)
class BongTangent(FlowGrid):
    """RES4LYF's tangent schedule in u = sigma / (alpha + sigma): two arctan arcs that meet at ``middle``."""

    middle: Inside = 0.5
    pivot: Inside = 0.6
    slope: Positive = 0.2

    @property
    def zero_replaces_t_min(self) -> bool:
        return True

    def flow_times(self, low: float, high: float, steps: int) -> Sequence[float]:
        bend = int(self.pivot * (steps + 2))
        first, second = (
            self._arc(bend, bend, steps, 1, self.middle),
            self._arc(steps + 2 - bend, 0, steps, self.middle, 0),
        )
        course = [*first[:-1], *second] if steps > 1 else [1.0, 0.0]
        return [low + c * (high - low) for c in course]

    def _arc(self, count: int, center: int, steps: int, start: float, stop: float) -> list[float]:
        """``count`` values of -arctan around an index, scaled to go from ``start`` to ``stop``."""
        slope = 40 * self.slope / (steps + 2)
        arc = [math.atan(slope * (center - i)) for i in range(count)]
        return (
            [stop + (value - arc[-1]) / (arc[0] - arc[-1]) * (start - stop) for value in arc] if count > 1 else [stop]
        )


@grids.register(
    "flow_shift",
    reference="Esser et al. 2024, arXiv:2403.03206, eq. 23",
    formula="u = k v / (1 + (k - 1) v), that is r = k v / (1 - v), v in equal steps; then 0",
    note="k = shift, exp(mu), or exp of mu(tokens): linear, 0.5 at 256 and 1.15 at 4096. The ends of the range are "
    "those of the shifted u. shift_terminal stretches 1 - u so that the last level before 0 is u = shift_terminal.",
)
@dataclass(frozen=True)
class FlowShift(FlowGrid):
    """Equal steps of a rectified flow's time, shifted towards the noise: sigma / alpha times k; then sigma = 0."""

    shift: Positive = 3.0
    mu: Annotated[float, Range(-50, 50, "()")] | None = None
    tokens: Count | None = None
    shift_terminal: Inside | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu is not None and self.tokens is not None:
            raise InputError("flow_shift takes mu or tokens, not both")

    @property
    def factor(self) -> float:
        """k, by which sigma / alpha is multiplied."""
        if self.tokens is not None:
            return math.exp(0.5 + (1.15 - 0.5) * (self.tokens - 256) / (4096 - 256))
        return self.shift if self.mu is None else math.exp(self.mu)

    def flow_times(self, low: float, high: float, steps: int) -> Sequence[float]:
        last = low if self.shift_terminal is None else self.shift_terminal
        if not low <= last < high:
            raise InputError(f"flow_shift: shift_terminal={last:g} is not in [{low:g}, {high:g}), the range of u")
        k = self.factor
        plain = np.linspace(high / (k + (1 - k) * high), low / (k + (1 - k) * low), steps + 1)
        shifted = k * plain / (1 + (k - 1) * plain)
        stretch = (high - last) / (high - low)
        return [float(high - (high - u) * stretch) for u in shifted]

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        low, high = (node.ratio for node in schedule.nodes([lo, hi]))
        return [hi, *(time_of(schedule, r, lo, hi) for r in self.ratios(low, high, steps)[1:])]

    def all_times(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        if self.shift_terminal is None:
            return super().all_times(schedule, lo, hi, steps)
        inner = steps - self.adds_last
        return [float(t) for t in self.place(schedule, lo, hi, inner)] if inner else [hi]
