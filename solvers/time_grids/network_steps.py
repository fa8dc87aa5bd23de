"""Grids for networks trained in discrete time: they use only the network's steps 0..T-1.

Step i is t = t_min + i / (T - 1) (t_max - t_min), always of the schedule's whole range. On VP's range [0.001, 1] with
T = 1000 that is t = (i + 1) / 1000, where the continuous path meets DDPM's chain. On a path over [0, 1] it is i / 999,
score_sde's label. A denoiser with the time label ``index`` passes exactly these integers to its network;
``scoresde.time_labels`` lists them. T is 1000 unless the schedule has its own number, as a chain of betas does.

N steps are N network steps and then sigma = 0; with ``end=t_min`` the last node is step 0 instead. A solve over a part
of the range uses the network steps in that part. A grid with more steps than the network has is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import Range
from ..types.schedule import Schedule
from .base import End, Grid, grids

N = TypeVar("N", float, Tensor)
LIN = "Lin et al. 2023, arXiv:2305.08891, table 2"


def train_timesteps(schedule: Schedule, given: int | None = None) -> int:
    """T, the number of a network's steps: ``given``, else the schedule's ``num_train_timesteps``, else 1000."""
    own = schedule.num_train_timesteps
    return given if given is not None else 1000 if own is None else own


def time_of_index(schedule: Schedule, index: N, num_train_timesteps: int | None = None) -> N:
    """The time of a network's step 0..T-1, a number or a tensor; for T see ``train_timesteps``."""
    share = index / (train_timesteps(schedule, num_train_timesteps) - 1)
    return (1 - share) * schedule.t_min + share * schedule.t_max


def index_of_time(schedule: Schedule, t: float, num_train_timesteps: int | None = None) -> float:
    """The network's step at a time; between two steps, a fraction. For T see ``train_timesteps``."""
    steps = train_timesteps(schedule, num_train_timesteps) - 1
    return steps * (t - schedule.t_min) / (schedule.t_max - schedule.t_min)


@dataclass(frozen=True)
class DiscreteGrid(Grid):
    """A rule that selects steps of a discrete-time network; ``num_train_timesteps`` is T, see ``train_timesteps``."""

    end: End = field(default="zero", kw_only=True)
    num_train_timesteps: Annotated[int, Range(2)] | None = field(default=None, kw_only=True)

    def indices(self, count: int, steps: int) -> Sequence[float]:
        """A selection of ``steps`` indices from 0..count-1, greatest first; fractions lie between two steps."""
        raise NotImplementedError

    def all_times(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        total = train_timesteps(schedule, self.num_train_timesteps)
        # the network steps in the range, whose ends may differ from steps by rounding
        first = math.ceil(index_of_time(schedule, lo, total) - 1e-6)
        last = math.floor(index_of_time(schedule, hi, total) + 1e-6)
        count = last - first + 1
        if steps > count:
            raise InputError(f"{self}: {steps} steps, but the network has {count} in this range; use fewer steps")
        picked = self.indices(count, steps)
        if self.end == "t_min":
            picked = [*picked, 0] if picked[-1] > 0 else self.indices(count, min(steps + 1, count))
            if len(picked) != steps + 1:
                raise InputError(f"{self}: {steps} steps need {steps + 1} network steps; use fewer steps")
        for i, (t, s) in enumerate(pairwise(picked)):
            if t <= s:
                raise InputError(f"{self}: nodes {i} and {i + 1} are both the network's step {s + first:g}; use fewer")
        if not 0 <= picked[-1] <= picked[0] < count:
            raise InputError(f"{self}: step {picked[0] + first:g} is not one of {first}..{last}; use fewer steps")
        return [min(max(time_of_index(schedule, first + i, total), lo), hi) for i in picked]


@grids.register(
    "leading",
    reference=LIN,
    formula="step (N - 1 - i) (T // N) + steps_offset, i < N, then sigma = 0",
    note="Never starts at the greatest noise. If N divides T, steps_offset=1 is ComfyUI's ddim_uniform. skip_last "
    "omits the last of N + 1 points, as diffusers' DPM-Solver, UniPC and DEIS do.",
)
@dataclass(frozen=True)
class Leading(DiscreteGrid):
    """Every (T // N)-th step of a discrete-time network, from ``steps_offset`` up; then sigma = 0."""

    steps_offset: Annotated[int, Range(0)] = 0
    skip_last: bool = False

    def indices(self, count: int, steps: int) -> list[int]:
        stride = count // (steps + self.skip_last)
        return [(i + self.skip_last) * stride + self.steps_offset for i in range(steps - 1, -1, -1)]


@grids.register(
    "trailing",
    reference=LIN,
    formula="step round(T - i T / N) - 1, i < N, then sigma = 0",
    note="rounding=up is ComfyUI's simple.",
)
@dataclass(frozen=True)
class Trailing(DiscreteGrid):
    """Every (T / N)-th step of a discrete-time network, from the last one down; then sigma = 0."""

    rounding: Literal["nearest", "up"] = "nearest"

    def indices(self, count: int, steps: int) -> list[int]:
        if self.rounding == "up":
            return [count - 1 - i * count // steps for i in range(steps)]
        return [round(count - i * count / steps) - 1 for i in range(steps)]


@grids.register(
    "linspace",
    reference=LIN,
    formula="step round((T - 1) (1 - i / (N - 1))), i < N, then sigma = 0",
    note="skip_last omits the last of N + 1 points, as diffusers' DPM-Solver, UniPC and DEIS do. rounding=none keeps "
    "the points between two steps, as diffusers' Euler, Heun, LMS and DPM2 do.",
)
@dataclass(frozen=True)
class Linspace(DiscreteGrid):
    """Evenly spaced steps of a discrete-time network, from the last to the first; then sigma = 0."""

    skip_last: bool = False
    rounding: Literal["nearest", "none"] = "nearest"

    def indices(self, count: int, steps: int) -> list[float]:
        points = np.linspace(0, count - 1, steps + self.skip_last)[::-1] if steps > 1 else np.array([count - 1.0, 0.0])
        chosen = points[:-1] if self.skip_last or steps == 1 else points
        return [float(i) for i in (chosen.round() if self.rounding == "nearest" else chosen)]


@grids.register(
    "ddim_quad",
    reference="Song et al. 2020, arXiv:2010.02502, appendix D.2",
    formula="step floor((sqrt(0.8 T) i / (N - 1))^2) + steps_offset, then sigma = 0",
    note="With T = 1000, nodes coincide from about N = 30, which is an error.",
)
@dataclass(frozen=True)
class DDIMQuad(DiscreteGrid):
    """DDIM's quadratic selection of a discrete-time network's steps, the greatest at 0.8 T; then sigma = 0."""

    steps_offset: int = 0

    def indices(self, count: int, steps: int) -> list[int]:
        roots = np.linspace(0, math.sqrt(0.8 * count), steps)[::-1] if steps > 1 else [math.sqrt(0.8 * count)]
        return [math.floor(root**2 + 1e-9) + self.steps_offset for root in roots]


@grids.register(
    "sgm_uniform",
    reference="Stability AI, generative-models; ComfyUI's scheduler of the same name",
    formula="t_i = t_max + (i / N) (t_min - t_max), i < N, then sigma = 0",
    note="Like uniform, with sigma = 0 instead of t_min. trailing is the closest grid that uses whole network steps.",
)
@dataclass(frozen=True)
class SGMUniform(Grid):
    """Equal steps of t, the last to sigma = 0 instead of t_min; its times may lie between a network's steps."""

    end: End = field(default="zero", kw_only=True)

    @property
    def zero_replaces_t_min(self) -> bool:
        return True

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        return [float(t) for t in np.linspace(hi, lo, steps + 1)]
