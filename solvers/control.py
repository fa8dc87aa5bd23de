"""Who decides where the next step goes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from .types import Node, Step


class Control(Protocol):
    """Proposes intervals to ``solve`` and is told how each went."""

    @property
    def start(self) -> Node:
        """Where the solve begins."""

    @property
    def end(self) -> Node:
        """Where it is meant to arrive."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that is known beforehand."""

    def intervals(self) -> Generator[tuple[Node, Node], Step, None]:
        """Yields (t, s); receives the ``Step`` taken over it."""


@dataclass(frozen=True)
class FixedGrid:
    """Every interval of a grid, in order; the grid may run either way."""

    nodes: tuple[Node, ...]

    @property
    def start(self) -> Node:
        return self.nodes[0]

    @property
    def end(self) -> Node:
        return self.nodes[-1]

    def intervals(self) -> Generator[tuple[Node, Node], Step, None]:
        for interval in pairwise(self.nodes):  # noqa: UP028  (an iterator delegated to could not receive steps)
            yield interval
