"""Time grids: rules that place the nodes of a solve on a schedule.

By default a grid covers the schedule's range [t_min, t_max]. The option ``end`` sets its last node: ``t_min``;
``zero``, where the last step goes from t_min to sigma = 0; or ``repeat``, with the levels of ``zero`` and then t_min.
If the level before is t_min itself, it is repeated: the two nodes are 1e-9 of lam apart, so the last step hardly moves
the state, but a corrector uses its evaluation. N steps are N intervals in all cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

from ..errors import InputError, number, positive_integer
from ..registry.options import Options
from ..registry.registry import Registry
from ..types.node import AnyNode, Node
from ..types.schedule import Schedule, as_schedule

N = TypeVar("N", bound=AnyNode)
End = Literal["t_min", "zero", "repeat"]
APART = 1e-9  # distance in lam of a level and its repetition: steps are resolved to 1e-6, the state moves by 1e-9


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
        """The number of steps, after validation."""
        if steps is None:
            raise InputError(f"the grid {self} needs a number of steps")
        return positive_integer("steps", steps)

    def nodes(
        self, schedule: Schedule | Any, steps: int | None, t_min: float | None = None, t_max: float | None = None
    ) -> tuple[Node, ...]:
        """The ``steps + 1`` nodes of a solve, from t_max to ``end``.

        Raises:
            InputError: steps is not a positive integer, the range exceeds the schedule's, or two nodes coincide.
        """
        schedule = as_schedule(schedule)
        lo, hi = time_range(schedule, t_min, t_max)
        count = self.intervals(steps)
        checked((schedule(hi), schedule(lo)), self)
        return checked(self.ended([float(t) for t in self.all_times(schedule, lo, hi, count)], schedule, lo), self)

    def ended(self, times: list[float], schedule: Schedule, lo: float) -> tuple[Node, ...]:
        """The nodes at the times of a solve, and the node that ``end`` adds: sigma = 0, or the node at ``lo``."""
        if self.end == "repeat":
            before = min(times[-1], schedule.t_of_lam(schedule(lo).lam - APART), key=lambda t: schedule(t).lam)
            times = [*times[:-1], before, lo]
        nodes = tuple(schedule.nodes(times))
        return (*nodes, schedule.clean) if self.end == "zero" else nodes

    def all_times(self, schedule: Schedule, lo: float, hi: float, steps: int) -> Sequence[float]:
        """The times of a solve of ``steps`` intervals without the node that ``end`` adds; the ends are exact."""
        inner = steps - (self.adds_last and not self.zero_replaces_t_min)
        times = [float(t) for t in self.place(schedule, lo, hi, inner)] if inner else [hi]
        times[0] = hi
        if self.adds_last and self.zero_replaces_t_min:
            return times[:-1]
        if len(times) > 1:
            times[-1] = lo
        return times

    @property
    def adds_last(self) -> bool:
        """Whether ``end`` adds a node to those that the rule places."""
        return self.end != "t_min"

    @property
    def zero_replaces_t_min(self) -> bool:
        """Whether the node that ``end`` adds replaces the last time that ``place`` returns, instead of following it."""
        return False

    def __str__(self) -> str:
        return grids.format(self)


grids: Registry[Grid] = Registry("grid", Grid)


def time_range(schedule: Schedule, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    """The range of a solve; by default, the schedule's range.

    Raises:
        InputError: the range is empty or exceeds the schedule's.
    """
    lo = schedule.t_min if t_min is None else number("t_min", t_min)
    hi = schedule.t_max if t_max is None else number("t_max", t_max)
    if not schedule.t_min <= lo < hi <= schedule.t_max:
        raise InputError(
            f"the times [{lo:g}, {hi:g}] are not a range within [{schedule.t_min:g}, {schedule.t_max:g}], "
            f"where {schedule} is defined"
        )
    return lo, hi


def checked(nodes: tuple[N, ...], name: object = "the grid") -> tuple[N, ...]:
    """Returns ``nodes`` if there are at least two, none has a defect, and the noise levels are strictly ordered.

    Raises:
        InputError: a condition fails; the message names the first invalid node.
    """
    if len(nodes) < 2:
        raise InputError(f"{name} has {len(nodes)} node; a solve needs at least two")
    for i, node in enumerate(nodes):
        if node.defect:
            raise InputError(f"{name}: node {i} (t={node.t:g}) has {node.defect}")
    sign = -1 if nodes[0].noise_level > nodes[-1].noise_level else 1
    for i, (t, s) in enumerate(pairwise(nodes)):
        if not sign * (s.noise_level - t.noise_level) > 0:
            problem = "coincide" if s.noise_level == t.noise_level else "are out of order"
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
    """The nodes that a grid, or its spec, places on a schedule or on any object that ``as_schedule`` accepts.

    >>> import scoresde
    >>> [round(node.t, 3) for node in grid("uniform", scoresde.VP(), steps=3)]
    [1.0, 0.667, 0.334, 0.001]

    Raises:
        InputError: see ``Grid.nodes``.
    """
    return grids.make(spec).nodes(schedule, steps, t_min, t_max)
