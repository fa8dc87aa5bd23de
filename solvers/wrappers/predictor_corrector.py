"""Predictor-corrector: after each step of a solver, Markov chain Monte Carlo steps at the new noise level."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..one_step.ancestral import ReverseDiffusion
from ..registry.ranges import Count
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Corrector, Noise, Solver, Step, correctors, solvers
from .base import Wrapper
from .correctors import Langevin


@solvers.register(
    "pc",
    aliases=("predictor_corrector",),
    kind="SDE + MCMC",
    order=1,
    stochastic=True,
    evaluations=2,
    reference="Song et al. 2021, arXiv:2011.13456, algorithm 1",
    formula="x_s = corrector(... corrector(predictor(x)))",
)
@dataclass(frozen=True)
class PC(Wrapper):
    """Predictor-corrector: a step of any solver, then corrector steps at the new noise level.

    On fine grids the outcome converges to the corrector's stationary law, see ``limit_variance``; the order is 1 for
    any predictor.
    """

    predictor: Solver = dataclasses.field(default=ReverseDiffusion())
    corrector: Corrector = dataclasses.field(default=Langevin())
    corrector_steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor.adaptive:
            raise InputError(f"pc: {self.predictor} chooses its own steps; take a predictor of fixed steps")

    @property
    def inner(self) -> Solver:
        return self.predictor

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def order(self) -> float:
        # the law after the corrector lags behind the noise level by about one step
        return min(1, self.predictor.order)

    @property
    def nonlinear(self) -> str:
        return self.predictor.nonlinear or correctors.info_of(self.corrector).nonlinear

    @property
    def evaluations(self) -> int:
        return self.predictor.evaluations + self.corrector_steps * correctors.info_of(self.corrector).evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.corrector.limit_variance(variance, node)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        step = self.predictor.step(problem, x, t, s, carry, noise)
        x = step.x
        for _ in range(self.corrector_steps):
            x = self.corrector.correct(problem, x, s, noise)
        return step._replace(x=x, carry=self.predictor.replaced(step.carry, x))
