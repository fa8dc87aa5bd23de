"""The free numbers of a tuning: how nodes, time labels and coefficients move, and the table that they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..program.trace import trace
from ..types.node import Node
from ..types.schedule import Schedule
from ..types.solver import Solver
from .places import Differences, range_of
from .search import Array
from .table import Table

GROUPS = ("nodes", "labels", "predictions", "states")
PRESETS = {
    "all": GROUPS,
    "ld3": ("nodes", "labels"),  # Tong et al. 2024, arXiv:2405.15506
    "s4s": ("nodes", "predictions"),  # Frankel et al. 2025, arXiv:2502.17423
}
_LEAST_GAP = 1e-3  # between nodes, as a share of the mean gap, so that no multistep method divides by zero


def groups_of(free: str | Sequence[str]) -> tuple[str, ...]:
    """The groups of free numbers that a preset or a list names, in the order of ``GROUPS``.

    >>> groups_of("ld3"), groups_of(("states", "nodes"))
    (('nodes', 'labels'), ('nodes', 'states'))

    Raises:
        InputError: a name is unknown, or there is none.
    """
    if isinstance(free, str) and free in PRESETS:
        return PRESETS[free]
    named = (free,) if isinstance(free, str) else tuple(free)
    for name in named:
        if name not in GROUPS:
            raise unknown("group of free numbers", name, (*GROUPS, *PRESETS))
    if not named:
        raise InputError(f"free is empty: name at least one of {', '.join(GROUPS)}")
    return tuple(name for name in GROUPS if name in named)


@dataclass(frozen=True)
class Theory:
    """A solver's own coefficients on a grid whose inner nodes move.

    Attributes:
        solver: a deterministic linear solver.
        schedule: the path on which it is traced.
        first, last: the nodes that stay.
    """

    solver: Solver
    schedule: Schedule
    first: Node
    last: Node

    def nodes(self, levels: Sequence[float] | Array) -> tuple[Node, ...]:
        """The grid with inner nodes at log(sigma / alpha) = ``levels`` (n,), descending."""
        return (self.first, *self.schedule.nodes_of_lam([-float(level) for level in levels]), self.last)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest log(sigma / alpha) of the path."""
        return range_of(self.schedule)

    def table(self, levels: Sequence[float] | Array) -> Table:
        """The solver's table on this grid."""
        return Table.of(trace(self.solver, self.nodes(levels), self.schedule))

    def __call__(self, levels: Tensor) -> Table:
        """The table at ``levels`` (n,), float64, with gradients by central differences of the trace."""

        def flat(at: Array) -> Array:
            made = self.table(at)
            return torch.cat([made.start, made.weights.flatten(), made.ratios]).numpy()

        found: Tensor = Differences.apply(levels, flat, *self.ends)  # type: ignore[no-untyped-call]
        n = (math.isqrt(4 * len(found) + 1) - 3) // 2  # (n + 1) (n + 2) numbers
        start, weights, ratios = torch.split(found, [n + 1, (n + 1) * n, n + 1])
        return Table(self.first.ratio, ratios, ratios[:-1], start, weights.view(n + 1, n))


@dataclass(frozen=True)
class FreeNumbers:
    """The table as a function of one vector of free numbers, which is 0 at the start of a tuning.

    - ``nodes``: the gap between two nodes in log(sigma / alpha) is that of the start times exp(number), and no node
      leaves the path.
    - ``labels``: the log of the noise level at which the model is evaluated is that of the state plus number.
    - ``predictions``: weights_nj is the theory's plus size_n times number.
    - ``states``: start_n is the theory's plus size_n / begin times number. With ``predictions`` this frees all
      combinations of the start, the past predictions and the past states, which are themselves sums of these.

    The theory is the solver's coefficients on the moved nodes, or with ``follows`` False on those of the start. size_n
    is about how far row n moves the state, (ratio before - ratio) / (1 + ratio before), so that late rows move finely.

    Attributes:
        theory: the solver's coefficients.
        levels: log(sigma / alpha) of the inner nodes at the start.
        free: the groups that move.
        follows: whether the theory's coefficients follow the nodes.
    """

    theory: Theory
    levels: tuple[float, ...]
    free: tuple[str, ...]
    follows: bool = True

    @cached_property
    def origin(self) -> Table:
        """The table at the start."""
        return self.theory.table(self.levels)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many numbers each free group has."""
        n = self.origin.nfe
        counts = {"nodes": len(self.levels), "labels": n, "predictions": n * (n + 1) // 2, "states": n}
        return {name: counts[name] for name in self.free}

    @cached_property
    def count(self) -> int:
        """How many free numbers there are."""
        return sum(self.sizes.values())

    @cached_property
    def _floors(self) -> Tensor:
        """The least levels of the inner nodes: the end of the path, and small gaps."""
        end = self.theory.ends[0] if self.theory.last.clean else -self.theory.last.lam
        gaps = len(self.levels) + 1
        least = _LEAST_GAP * (-self.theory.first.lam - end) / gaps
        above = torch.arange(len(self.levels) - 1, -1, -1, dtype=torch.float64)
        return end + least * (above + (0 if self.theory.last.clean else 1))

    @cached_property
    def row_sizes(self) -> Tensor:
        """About how far each row moves the state (N + 1,)."""
        ratios = self.origin.ratios
        before = torch.cat([ratios.new_tensor([self.origin.begin]), ratios[:-1]])
        return ((before - ratios) / (1 + before)).clamp_min(1e-3 * float(ratios[:-1].min()))

    def inner(self, moves: Tensor) -> Tensor:
        """log(sigma / alpha) of the inner nodes (n,) for the numbers of ``nodes`` (n,)."""
        first = -self.theory.first.lam
        start = torch.tensor([first, *self.levels], dtype=torch.float64)
        moved = first - ((start[:-1] - start[1:]) * moves.exp()).cumsum(0)
        return torch.maximum(moved, self._floors)

    def table(self, numbers: Tensor) -> Table:
        """The table of free numbers (count,), float64; differentiable."""
        part = dict(zip(self.sizes, torch.split(numbers, list(self.sizes.values())), strict=True))
        made = self.origin
        if part.get("nodes", numbers[:0]).numel():
            moved = self.theory(self.inner(part["nodes"]))
            kept = moved if self.follows else self.origin
            made = Table(made.begin, moved.ratios, moved.labels, kept.start, kept.weights)
        labels, start, weights = made.labels, made.start, made.weights
        if "labels" in part:
            labels = (labels.log() + part["labels"]).clamp(*self.theory.ends).exp()
        if "predictions" in part:
            n, size = made.nfe, self.row_sizes
            rows, columns = torch.tril_indices(n + 1, n, -1)
            weights = weights.index_put((rows, columns), part["predictions"] * size[rows], accumulate=True)
        if "states" in part:
            moves = part["states"] * self.row_sizes[1:] / made.begin
            start = start + torch.cat([moves.new_zeros(1), moves])
        return Table(made.begin, made.ratios, labels, start, weights)
