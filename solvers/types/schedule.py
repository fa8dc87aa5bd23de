"""A Gaussian path as grids and solvers see it: the node of a time, and the time of a noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .node import Node

NEEDED = ("t_min", "t_max", "clean", "t_of_lam")


class Schedule:
    """A Gaussian path over times [t_min, t_max]; every ``scoresde`` SDE is one.

    A subclass has ``t_min`` and ``t_max``, as attributes or properties, and implements ``__call__`` and ``t_of_lam``.
    Everything else has a default. ``as_schedule`` adapts any other suitable object.
    """

    if TYPE_CHECKING:  # read-only for a type checker; a dataclass may still declare them as fields

        @property
        def t_min(self) -> float:
            """The smallest time."""

        @property
        def t_max(self) -> float:
            """The largest time."""

    @property
    def clean(self) -> Node:
        """The data: the node with alpha = 1 and sigma = 0."""
        return Node(self.t_min, 1.0, 0.0)

    @property
    def num_train_timesteps(self) -> int | None:
        """The number of nodes of a path through the nodes of a discrete chain; None for every other path."""
        return None

    def __call__(self, t: float) -> Node:
        """The node at time t."""
        raise NotImplementedError

    def t_of_lam(self, lam: float) -> float:
        """The time where log(alpha / sigma) = lam."""
        raise NotImplementedError

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """The nodes at all given times; a subclass may compute them together, which is faster."""
        return [self(t) for t in times]

    def node_of_lam(self, lam: float) -> Node:
        """The node where log(alpha / sigma) = lam; the nearer end of the path if it does not reach lam."""
        return self(self._time_of_lam(lam))

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        """``node_of_lam`` of each lam, by one call of ``nodes``."""
        return self.nodes([self._time_of_lam(lam) for lam in lams])

    def _time_of_lam(self, lam: float) -> float:
        return min(max(self.t_of_lam(lam), self.t_min), self.t_max)


def as_schedule(given: Any) -> Schedule:
    """Adapts any callable of a time with ``t_min``, ``t_max``, ``clean`` and ``t_of_lam(lam)`` to a schedule.

    Optional parts are looked up here, once: ``nodes(times)`` and ``num_train_timesteps``.

    Raises:
        InputError: the object lacks a required part; the message names it.
    """
    if isinstance(given, Schedule):
        return given
    missing = [name for name in NEEDED if not hasattr(given, name)]
    if missing or not callable(given):
        lacks = ", ".join(missing) or "a call with a time"
        raise InputError(f"a schedule has {', '.join(NEEDED)} and is called with a time; {given!r} lacks {lacks}")
    return _AdaptedSchedule(given)


class _AdaptedSchedule(Schedule):
    """An adapter from any suitable object to a schedule."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.together = getattr(given, "nodes", None)
        self.steps: int | None = getattr(given, "num_train_timesteps", None)

    @property
    def t_min(self) -> float:
        return float(self.given.t_min)

    @property
    def t_max(self) -> float:
        return float(self.given.t_max)

    @property
    def clean(self) -> Node:
        node: Node = self.given.clean
        return node

    @property
    def num_train_timesteps(self) -> int | None:
        return self.steps

    def __call__(self, t: float) -> Node:
        node: Node = self.given(t)
        return node

    def t_of_lam(self, lam: float) -> float:
        return float(self.given.t_of_lam(lam))

    def nodes(self, times: Sequence[float]) -> list[Node]:
        return super().nodes(times) if self.together is None else list(self.together(times))

    def __str__(self) -> str:
        return str(self.given)
