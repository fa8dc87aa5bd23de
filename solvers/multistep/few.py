"""``few``: one table of numbers for each number of evaluations from 4 to 12, tuned over a family of models.

The numbers are in few.json next to the grid of the same name. ``benchmarks/tuning/few.py`` tunes them on models made
from formulas and seeds, exact ones and small networks, and measures them on models that the tuning has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..registry.ranges import Count, Positive
from ..time_grids.base import grids
from ..time_grids.few import Few as FewGrid
from ..time_grids.few import FewTable, few_tables
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .adams import IPNDM

_NEAR = 1e-6  # the largest relative difference between a noise level and the table's
_OTHER = IPNDM()  # on other nodes


class Past(NamedTuple):
    """The carry: the table, the start in its units, and the predictions of x0 so far; or the carry of ``ipndm``."""

    table: FewTable | None
    start: Any = None
    predictions: tuple[Any, ...] = ()
    other: Any = None


@solvers.register(
    "few",
    kind="ODE",
    order=2,
    reference="benchmarks/tuning/few.py; the form of the tables: Wang et al. 2025, arXiv:2510.17699, section 3",
    formula="x_s / alpha_s = x / alpha_t + (start_n - start_{n-1}) y + sum_j (w_nj - w_{n-1,j}) x0_j",
    native="x0",
    note="4 to 12 steps on the grid few, which it takes by itself; on any other nodes it is ipndm",
)
@dataclass(frozen=True)
class Few(Solver):
    """Numbers tuned for 4 to 12 evaluations over a family of models, for models that the tuning has not seen.

    Where no grid is named, it takes its own, ``few``. On the nodes of other grids, with more steps, and from a state
    that is not nearly noise, it is ``ipndm``. Its noise levels are relative to the standard deviation of the data.

    A path may begin at more noise than the tables, where networks that predict eps are far off. So the start moves to
    the tables' first level r_0 before the first evaluation, as data of variance sigma_data^2 would:
    y = x / alpha sqrt((r_0^2 + sigma_data^2) / (r^2 + sigma_data^2)), with r = sigma / alpha.

    Args:
        nfe: the number of evaluations; given here, it cannot be given elsewhere.
        sigma_data: the standard deviation of the data: about 0.5 of images in [-1, 1], 1 of standardised data.
    """

    nfe: Count | None = None
    sigma_data: Positive = 0.5

    @property
    def own_grid(self) -> str:
        return str(grids.format(FewGrid(sigma_data=self.sigma_data, nfe=self.nfe)))

    @property
    def plans_grid(self) -> bool:
        return True

    def table(self, nodes: Sequence[Node]) -> FewTable | None:
        """The table for these nodes; None if there is none."""
        levels = FewGrid(sigma_data=self.sigma_data).levels(nodes[0].ratio, len(nodes) - 1)
        if levels is None or nodes[-1].sigma != 0:
            return None
        near = all(math.isclose(n.ratio, r, rel_tol=_NEAR) for n, r in zip(nodes[1:-1], levels, strict=True))
        return few_tables()[len(nodes) - 1] if near else None

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Past:
        table = self.table(nodes)
        if table is None:
            return Past(None, other=_OTHER.init(problem, x, nodes))
        node, first = nodes[0], self.sigma_data * table.ratios[0]
        scale = math.hypot(first, self.sigma_data) / math.hypot(node.ratio, self.sigma_data)
        return Past(table, scale / node.alpha * x)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Past, noise: Noise | None) -> Step:
        if carry.table is None:
            made = _OTHER.step(problem, x, t, s, carry.other, noise)
            return made._replace(carry=carry._replace(other=made.carry))
        return self._row(problem, x, t, s, carry)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Past, noise: Noise | None) -> Step:
        if carry.table is None:
            made = _OTHER.to_data(problem, x, t, s, carry.other, noise)
            return made._replace(carry=carry._replace(other=made.carry))
        return self._row(problem, x, t, s, carry)

    def _row(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Past) -> Step:
        """The next row of the table, as a change of the state, so that a state that a hook replaces counts."""
        table = carry.table
        assert table is not None
        n = len(carry.predictions) + 1
        if n == 1:
            first = self.sigma_data * table.ratios[0]
            if t.ratio > (1 + _NEAR) * first:
                t = problem.node_of_lam(-math.log(first))
                x = t.alpha * carry.start
            y = (s.alpha * table.start[1]) * carry.start
        else:
            y = (s.alpha / t.alpha) * x + (s.alpha * (table.start[n] - table.start[n - 1])) * carry.start
        known = (*carry.predictions, problem.predict(x, t).x0)
        before = (*table.weights[n - 1], 0.0)
        for new, old, prediction in zip(table.weights[n], before, known, strict=True):
            y = y + (s.alpha * (new - old)) * prediction
        return Step(y, carry._replace(predictions=known))
