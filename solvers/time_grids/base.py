"""Time grids: where a fixed-step solve evaluates its path.

A grid covers the schedule's [t_min, t_max] unless told otherwise. ``end`` says where it stops: at ``t_min``, or at
``zero``, when the last of its steps goes from t_min to sigma = 0. Either way N steps are N intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

from ..errors import InputError, positive_integer
from ..registry.options import Options
from ..registry.registry import Registry
from ..types.node import AnyNode, Node
from ..types.schedule import Schedule, as_schedule

N = TypeVar("N", bound=AnyNode)
End = Literal["t_min", "zero"]


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
        self, schedule: Schedule | Any, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        """The nodes of a solve from t_max to ``end``, ``steps + 1`` of them.

        Raises:
            InputError: steps is not a positive integer, the range leaves the schedule's, or nodes collapse.
        """
        schedule = as_schedule(schedule)
        lo, hi = time_range(schedule, t_min, t_max)
        count = self.intervals(steps)
        checked((schedule(hi), schedule(lo)), str(self))
        nodes = schedule.nodes([float(t) for t in self.all_times(schedule, lo, hi, count)])
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
    schedule: Schedule | Any,
    steps: int | None = None,
    *,
    t_min: float | None = None,
    t_max: float | None = None,
) -> tuple[Node, ...]:
    """The nodes that a grid's spec places on a schedule, or on any object that ``as_schedule`` makes one of.

    >>> import scoresde
    >>> [round(node.t, 3) for node in grid("uniform", scoresde.VP(), steps=3)]
    [1.0, 0.667, 0.334, 0.001]

    Raises:
        InputError: see ``Grid.nodes``.
    """
    return grids.make(spec).nodes(schedule, steps, t_min, t_max)
