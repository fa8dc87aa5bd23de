"""The analytical first step: a formula replaces the first model evaluation, where the state is nearly all noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..multistep.dpm_solver import DPMpp2M
from ..types.node import Node, Prediction, Rows
from ..types.problem import Problem, ProblemWrapper
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, require


@solvers.register(
    "afs",
    aliases=("analytical_first_step",),
    kind="ODE",
    order=1,
    reference="Dockhorn et al. 2022, arXiv:2210.05475, analytical first step",
    formula="x_s = solver(x), with eps = x / sqrt(alpha^2 + sigma^2) for the first prediction",
    note="one evaluation less than the solver's",
)
@dataclass(frozen=True)
class AFS(Wrapper):
    """Runs any solver with the first prediction eps = x / sqrt(alpha^2 + sigma^2) instead of a model evaluation.

    At the noisy end x is nearly all noise, of that size. The error of this prediction enters one step only: order 1,
    with a small constant. From data to noise every prediction is the model's. Raises InputError around a solver that
    chooses its own steps or evaluates several steps at once.
    """

    solver: Solver = dataclasses.field(default=DPMpp2M())

    def __post_init__(self) -> None:
        super().__post_init__()
        require("afs", self.solver)
        if self.solver.parallel:
            raise InputError(f"afs: {self.solver} evaluates several steps at once; take a solver that steps one by one")

    @property
    def order(self) -> float:
        return min(1, self.solver.order)

    @property
    def nominal_order(self) -> float:
        """The solver's order; it would hold if the first prediction were exact."""
        return self.solver.order

    @property
    def restartable(self) -> bool:
        return False

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return nodes[0].ratio > nodes[-1].ratio, self.solver.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        first, inner = carry
        advance = self.solver.to_data if s.clean else self.solver.step
        step = advance(_Answered(problem) if first else problem, x, t, s, inner, noise)
        return step._replace(carry=(False, step.carry))

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.step(problem, x, t, s, carry, noise)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        first, inner = carry
        return first, self.solver.replaced(inner, x)


class _Answered(ProblemWrapper):
    """A problem whose first prediction assumes that the state is pure noise."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.first = True

    def predict(self, x: Tensor, node: Any) -> Prediction:
        if not self.first:
            return self.problem.predict(x, node)
        self.first = False
        size = math.hypot(node.alpha, node.sigma)
        # x0 = (x - sigma eps) / alpha = alpha x / (size (size + sigma)), without cancellation
        return Prediction((node.alpha / (size * (size + node.sigma))) * x, (1 / size) * x, 0 * x)

    def select(self, rows: Rows) -> Problem:
        return self.problem.select(rows)
