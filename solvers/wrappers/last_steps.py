"""``final``: a different solver takes the last steps of the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..multistep.dpm_solver import DPMpp2M
from ..one_step.runge_kutta import Euler
from ..registry.ranges import Count
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, require


@solvers.register(
    "final",
    aliases=("last_steps",),
    kind="ODE",
    order=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 1 (its last step is Euler's)",
    formula="x_s = solver(x), and in the last steps x_s = last(x)",
)
@dataclass(frozen=True)
class Final(Wrapper):
    """Runs ``solver``, and ``last`` for the last ``steps`` steps of the grid.

    ``last`` starts there without history, even if it is a multistep method. The local error of a step has one order
    more than the method, and the number of these steps is fixed. So the whole has the order of ``solver``, or that of
    ``last`` plus 1 if this is lower.
    """

    solver: Solver = dataclasses.field(default=DPMpp2M())
    last: Solver = dataclasses.field(default=Euler())
    steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("final", self.solver)
        require("final", self.last)

    @property
    def order(self) -> float:
        return min(self.solver.order, self.last.order + 1)

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic or self.last.stochastic

    @property
    def nonlinear(self) -> str:
        return self.solver.nonlinear or self.last.nonlinear

    @property
    def plans_grid(self) -> bool:
        return True

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        before = max(len(nodes) - 1 - self.steps, 0)
        start = self.solver.init(problem, x, nodes) if before else self.last.init(problem, x, nodes)
        return before, tuple(nodes[before:]), start

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        before, nodes, inner = carry
        solver = self.solver if before > 0 else self.last
        step = (solver.to_data if s.clean else solver.step)(problem, x, t, s, inner, noise)
        inner = self.last.init(problem, step.x, nodes) if before == 1 else step.carry
        return step._replace(carry=(before - 1, nodes, inner))

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        before, nodes, inner = carry
        return before, nodes, (self.solver if before > 0 else self.last).replaced(inner, x)
