"""Time grids: where a fixed-step solve evaluates its path.

A grid covers the schedule's [t_min, t_max] unless told otherwise. ``end`` says where it stops: at ``t_min``, or at
``zero``, when the last of its steps goes from t_min to sigma = 0. Either way N steps are N intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np

from .errors import InputError, positive_integer
from .node import AnyNode, Node
from .ranges import Positive, Range
from .registry import Options, Registry

N = TypeVar("N", bound=AnyNode)
End = Literal["t_min", "zero"]


class Schedule(Protocol):
    """What a grid needs of a Gaussian path; every ``scoresde`` SDE is one. A path that has ``nodes(times)`` as well, a
    sequence of nodes, is asked for all the times of a grid at once."""

    @property
    def t_min(self) -> float:
        """The least time."""

    @property
    def t_max(self) -> float:
        """The greatest time."""

    @property
    def clean(self) -> Node:
        """The data: the node with sigma = 0."""

    def __call__(self, t: float) -> Node:
        """The path at t."""

    def t_of_lam(self, lam: float) -> float:
        """The time where log(alpha / sigma) = lam."""


def node_of_lam(schedule: Schedule, lam: float) -> Node:
    """The path where log(alpha / sigma) = lam, at the nearer end of the schedule where it does not reach lam."""
    return schedule(_time_of_lam(schedule, lam))


def nodes_of_lam(schedule: Schedule, lams: Sequence[float]) -> list[Node]:
    """``node_of_lam`` of each, in one evaluation of a schedule that has ``nodes``."""
    return nodes_at(schedule, [_time_of_lam(schedule, lam) for lam in lams])


def _time_of_lam(schedule: Schedule, lam: float) -> float:
    return min(max(schedule.t_of_lam(lam), schedule.t_min), schedule.t_max)


def nodes_at(schedule: Schedule, times: Sequence[float]) -> list[Node]:
    """The path at every time."""
    together: Callable[[Sequence[float]], Sequence[Node]] | None = getattr(schedule, "nodes", None)
    return list(together(times)) if together else [schedule(t) for t in times]


@dataclass(frozen=True)
class Grid(Options):
    """A rule that places the times of a solve; a frozen dataclass whose fields are its options."""

    end: End = field(default="t_min", kw_only=True)

    def place(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        """``steps + 1`` times from ``hi`` down to ``lo``."""
        raise NotImplementedError

    @property
    def fixed(self) -> bool:
        """Whether the grid sets the number of steps itself."""
        return False

    def intervals(self, steps: int | None) -> int:
        """The number of steps, checked."""
        if steps is None:
            raise InputError(f"the grid {self} needs a number of steps")
        return positive_integer("steps", steps)

    def nodes(
        self, schedule: Schedule, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        """The nodes of a solve from t_max to ``end``, ``steps + 1`` of them.

        Raises:
            InputError: steps is not a positive integer, the range leaves the schedule's, or nodes collapse.
        """
        lo, hi = time_range(schedule, t_min, t_max)
        count = self.intervals(steps)
        checked((schedule(hi), schedule(lo)), str(self))
        nodes = nodes_at(schedule, [float(t) for t in self.all_times(schedule, lo, hi, count)])
        return checked((*nodes, schedule.clean) if self.end == "zero" else tuple(nodes), str(self))

    def all_times(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        """The times of a solve of ``steps`` intervals, less the step to sigma = 0; both ends are put right."""
        to_zero = self.end == "zero"
        inner = steps - (to_zero and not self.leaves_out_last)
        times = [float(t) for t in self.place(schedule, lo, hi, inner)] if inner else [hi]
        times[0] = hi
        if to_zero and self.leaves_out_last:
            return times[:-1]
        if len(times) > 1:
            times[-1] = lo
        return times

    @property
    def leaves_out_last(self) -> bool:
        """Whether sigma = 0 stands in the place of t_min instead of after it."""
        return False

    def __str__(self) -> str:
        return grids.format(self)


grids: Registry[Grid] = Registry("grid", Grid)


def time_range(schedule: Schedule, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    """The range of a solve, within the schedule's own.

    Raises:
        InputError: the range is empty or leaves the schedule's.
    """
    lo = schedule.t_min if t_min is None else float(t_min)
    hi = schedule.t_max if t_max is None else float(t_max)
    if not schedule.t_min <= lo < hi <= schedule.t_max:
        raise InputError(
            f"the times [{lo:g}, {hi:g}] are not a range within [{schedule.t_min:g}, {schedule.t_max:g}], "
            "where the SDE is defined"
        )
    return lo, hi


def checked(nodes: tuple[N, ...], name: str = "the grid") -> tuple[N, ...]:
    """``nodes``, if they are at least two, without a defect, and strictly ordered in noise.

    Raises:
        InputError: they are not; the message names the first offending node.
    """
    if len(nodes) < 2:
        raise InputError(f"{name} has {len(nodes)} node; a solve needs at least two")
    for i, node in enumerate(nodes):
        if node.defect:
            raise InputError(f"{name}: node {i} (t={node.t:g}) has {node.defect}")
    sign = -1 if nodes[0].level > nodes[-1].level else 1
    for i, (t, s) in enumerate(pairwise(nodes)):
        if not sign * (s.level - t.level) > 0:
            problem = "coincide" if s.level == t.level else "are out of order"
            raise InputError(f"{name}: nodes {i} and {i + 1} (t={t.t:g}, t={s.t:g}) {problem}; use fewer steps")
    return nodes


def grid(
    spec: str | Grid,
    schedule: Schedule,
    steps: int | None = None,
    *,
    t_min: float | None = None,
    t_max: float | None = None,
) -> tuple[Node, ...]:
    """The nodes that a grid's spec places on a schedule.

    >>> import scoresde
    >>> [round(node.t, 3) for node in grid("uniform", scoresde.VP(), steps=3)]
    [1.0, 0.667, 0.334, 0.001]

    Raises:
        InputError: see ``Grid.nodes``.
    """
    return grids.make(spec).nodes(schedule, steps, t_min, t_max)


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
            raise InputError(f"quadratic takes powers of t, which is {lo:g} at the end of this range")
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
    "karras",
    aliases=("edm", "polynomial"),
    reference="Karras et al. 2022, arXiv:2206.00364, eq. 5",
    formula="ratio_i^(1/rho) = ratio_max^(1/rho) + i / (N - 1) (ratio_min^(1/rho) - ratio_max^(1/rho)), then 0",
)
@dataclass(frozen=True)
class Karras(Grid):
    """Equal steps of ratio^(1/rho) with ratio = sigma / alpha, then one step to sigma = 0."""

    end: End = field(default="zero", kw_only=True)
    rho: Annotated[float, Range(1e-2, 1e6)] = 7.0  # beyond, the powers leave float64

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
            raise InputError("explicit takes either times=[...] or ratios=[...]")

    @property
    def fixed(self) -> bool:
        return True

    def intervals(self, steps: int | None) -> int:
        to_zero = self.end == "zero" and not (self.ratios and self.ratios[-1] == 0)
        count = max(len(self.times), len(self.ratios)) - 1 + to_zero
        if steps not in (None, count):
            raise InputError(f"the explicit grid has {count} steps, not {steps}")
        return count

    def nodes(
        self, schedule: Schedule, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        lo, hi = time_range(schedule, t_min, t_max)
        self.intervals(steps)
        to_zero = self.end == "zero" or (bool(self.ratios) and self.ratios[-1] == 0)
        ratios = self.ratios[:-1] if self.ratios and self.ratios[-1] == 0 else self.ratios
        if any(not r > 0 for r in ratios):
            raise InputError("explicit: ratios must be positive, but for a last 0")
        times = list(self.times or (schedule.t_of_lam(-math.log(r)) for r in ratios))
        slack = 1e-9 * (hi - lo)
        for t in times:
            if not lo - slack <= t <= hi + slack:
                raise InputError(f"the explicit grid's t={t:g} is outside [{lo:g}, {hi:g}]")
        nodes = nodes_at(schedule, [min(max(t, lo), hi) for t in times])
        made = checked((*nodes, schedule.clean) if to_zero else tuple(nodes), "the explicit grid")
        if made[0].ratio < made[-1].ratio:
            raise InputError("the explicit grid is out of order: list it from noise to data")
        return made
