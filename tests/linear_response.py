"""Reads a linear solver's numbers: two solvers with the same numbers are one method.

The state is a row of coefficients over the basis (x_T, eps_1, ..., eps_P, z_1, ..., z_Q): the start, the model's P
predictions and the Q noise draws, in the order in which the solver asks for them. Every prediction is answered with a
fresh basis vector, whatever the state, so the final row holds the solver's weights exactly, and the row at the k-th
evaluation tells where the model was asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solvers import Node, Prediction, Solver, solve
from solvers.analytic import VP
from solvers.grids import Schedule


class _Basis:
    """A problem and a noise source that answer with basis vectors; ``size`` 1 only counts the questions."""

    def __init__(self, schedule: Schedule, first_draw: int, size: int) -> None:
        self.schedule, self.size, self.first_draw = schedule, size, first_draw
        self.draws = 0
        self.asked: list[tuple[Node, Tensor]] = []

    def node(self, t: float) -> Node:
        return self.schedule(t)

    def node_of_lam(self, lam: float) -> Node:
        return self.schedule(self.schedule.t_of_lam(lam))

    def unit(self, k: int) -> Tensor:
        x = torch.zeros(1, self.size, dtype=torch.float64)
        if k < self.size:
            x[0, k] = 1.0
        return x

    def predict(self, x: Tensor, node: Node) -> Prediction:
        self.asked.append((node, x[0]))
        eps = self.unit(len(self.asked))
        return Prediction((x - node.sigma * eps) / node.alpha, eps)

    def __call__(self, t: Node, s: Node) -> Tensor:
        self.draws += 1
        return self.unit(self.first_draw + self.draws - 1)


def coefficients(
    solver: Solver, nodes: Sequence[Node], schedule: Schedule = VP
) -> tuple[Tensor, list[tuple[Node, Tensor]]]:
    """The weights of a linear, non-adaptive solver over a grid.

    Args:
        solver: the method; its steps must be linear in the state, the predictions and the noise.
        nodes: the grid.
        schedule: the path that the grid lies on.

    Returns:
        The final state's coefficients (1 + P + Q,) over (x_T, eps_1..eps_P, z_1..z_Q), and for every evaluation in
        turn its node and the coefficients (1 + P + Q,) of the state that the model was shown.
    """
    count = _Basis(schedule, 1, 1)
    solve(solver, count, count.unit(0), nodes, count)
    basis = _Basis(schedule, 1 + len(count.asked), 1 + len(count.asked) + count.draws)
    return solve(solver, basis, basis.unit(0), nodes, basis).x[0], basis.asked


def distance(one: Solver, other: Solver, nodes: Sequence[Node], schedule: Schedule = VP) -> float:
    """The largest difference between two solvers' numbers: final coefficients, and states and lam where the model is
    asked; relative to the largest coefficient. Infinite if they ask or draw a different number of times."""
    (x, asked), (y, asked_other) = coefficients(one, nodes, schedule), coefficients(other, nodes, schedule)
    if len(x) != len(y) or len(asked) != len(asked_other):
        return float("inf")
    gaps = [(x - y).abs().max() / x.abs().max()]
    for (node, state), (node_other, state_other) in zip(asked, asked_other, strict=True):
        gaps.append((state - state_other).abs().max() / state.abs().max())
        gaps.append(torch.tensor(abs(node.lam - node_other.lam), dtype=torch.float64))
    return float(max(gaps))
