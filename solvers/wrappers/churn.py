"""Churn: fresh noise before each step of a solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from ..errors import InputError
from ..one_step.runge_kutta import Heun
from ..registry.ranges import Range
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, renoise, require


@solvers.register(
    "churn",
    aliases=("stochastic_heun", "edm_stochastic"),
    kind="ODE + noise",
    order=2,
    stochastic=True,
    evaluations=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 2",
    formula="x' / alpha' = x / alpha + s_noise sqrt(ratio'^2 - ratio^2) z, ratio' = (1 + gamma) ratio; "
    "x_s = solver(x', t' -> s)",
    note="with s_noise above 1 the excess noise does not vanish on finer grids",
)
@dataclass(frozen=True)
class Churn(Wrapper):
    """EDM's stochastic sampler: fresh noise raises the noise level a little before each step of the solver.

    Where the level sigma / alpha lies in [s_tmin, s_tmax], it is multiplied by 1 + gamma, but never raised beyond the
    end of the schedule. On a grid of N steps, gamma = min(s_churn / N, sqrt(2) - 1). Published settings are
    ``churn(s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003)`` for ImageNet 64 and
    ``churn(s_churn=30, s_tmin=0.01, s_tmax=1, s_noise=1.007)`` for CIFAR-10.
    """

    solver: Solver = dataclasses.field(default=Heun())
    s_churn: Annotated[float, Range(0)] = 40.0
    s_tmin: Annotated[float, Range(0)] = 0.0
    s_tmax: Annotated[float, Range(0)] = math.inf
    s_noise: Annotated[float, Range(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("churn", self.solver, restartable=True)
        if self.s_tmin > self.s_tmax:
            raise InputError(f"churn: s_tmin={self.s_tmin:g} is above s_tmax={self.s_tmax:g}")

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0 or self.solver.stochastic

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return len(nodes) - 1, self.solver.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x, t = self._raise(problem, x, t, carry[0], noise)
        return self.solver.step(problem, x, t, s, carry[1], noise)._replace(carry=carry)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x, t = self._raise(problem, x, t, carry[0], noise)
        return self.solver.to_data(problem, x, t, s, carry[1], noise)._replace(carry=carry)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        steps, inner = carry
        return steps, self.solver.replaced(inner, x)

    def _raise(self, problem: Problem, x: Tensor, t: Node, steps: int, noise: Noise | None) -> tuple[Tensor, Node]:
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= t.ratio <= self.s_tmax else 0.0
        if gamma == 0:
            return x, t
        assert noise is not None
        return renoise(x, t, problem.node_of_lam(t.lam - math.log1p(gamma)), self.s_noise, noise)
