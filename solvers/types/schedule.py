"""A Gaussian path as grids and solvers see it: what a time means, and where a noise level lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .node import Node

NEEDED = ("t_min", "t_max", "clean", "t_of_lam")


class Schedule:
    """A Gaussian path over times [t_min, t_max]; every ``scoresde`` SDE is one.

    A subclass has ``t_min`` and ``t_max``, as attributes or properties, and writes ``__call__`` and ``t_of_lam``. The
    rest are defaults. Any other object that says as much is adapted once, by ``as_schedule``.
    """

    if TYPE_CHECKING:  # read-only to a type checker, and to a dataclass free to be fields

        @property
        def t_min(self) -> float:
            """The least time."""

        @property
        def t_max(self) -> float:
            """The greatest time."""

    @property
    def clean(self) -> Node:
        """The data: the node with alpha = 1 and sigma = 0."""
        return Node(self.t_min, 1.0, 0.0)

    @property
    def num_train_timesteps(self) -> int | None:
        """How many nodes a path through the nodes of a discrete chain has; None for every other path."""
        return None

    def __call__(self, t: float) -> Node:
        """The path at t."""
        raise NotImplementedError

    def t_of_lam(self, lam: float) -> float:
        """The time where log(alpha / sigma) = lam."""
        raise NotImplementedError

    def nodes(self, times: Sequence[float]) -> list[Node]:
        """The path at every time; a subclass may find many sooner than each."""
        return [self(t) for t in times]

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam, at its nearer end where it does not reach lam."""
        return self(self._time_of_lam(lam))

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        """``node_of_lam`` of each, by one call of ``nodes``."""
        return self.nodes([self._time_of_lam(lam) for lam in lams])

    def _time_of_lam(self, lam: float) -> float:
        return min(max(self.t_of_lam(lam), self.t_min), self.t_max)


def as_schedule(given: Any) -> Schedule:
    """A schedule of any object with ``t_min``, ``t_max``, ``clean`` and ``t_of_lam(lam)`` that is called with a time.

    What else it may have is looked up here, once: ``nodes(times)`` and ``num_train_timesteps``.

    Raises:
        InputError: the object lacks one of them; the message says which.
    """
    if isinstance(given, Schedule):
        return given
    missing = [name for name in NEEDED if not hasattr(given, name)]
    if missing or not callable(given):
        lacks = ", ".join(missing) or "a call with a time"
        raise InputError(f"a schedule has {', '.join(NEEDED)} and is called with a time; {given!r} lacks {lacks}")
    return _Adapted(given)


class _Adapted(Schedule):
    """A foreign object as a schedule."""

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
