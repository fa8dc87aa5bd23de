"""Solver to solver: methods built from other methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .ancestral import ReverseDiffusion
from .errors import InputError, positive_integer
from .langevin import Langevin
from .types import Corrector, Node, Noise, Problem, Solver, Step, solvers


@solvers.register(
    "pc",
    aliases=("predictor_corrector",),
    kind="SDE + MCMC",
    order=1,
    stochastic=True,
    linear=False,
    evaluations=2,
    reference="Song et al. 2021, arXiv:2011.13456, algorithm 1",
    formula="x_s = corrector(... corrector(predictor(x)))",
)
@dataclass(frozen=True)
class PC(Solver):
    """Predictor-corrector: a step of any solver, then corrector steps at the level it arrived at."""

    predictor: Solver = dataclasses.field(default=ReverseDiffusion())
    corrector: Corrector = dataclasses.field(default=Langevin())
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        positive_integer("pc: corrector_steps", self.corrector_steps)
        if self.predictor.adaptive:
            raise InputError(f"pc: {self.predictor} chooses its own steps and cannot be a predictor")

    @property
    def order(self) -> float:
        return self.predictor.order

    @property
    def evaluations(self) -> int:
        return self.predictor.evaluations + self.corrector_steps

    @property
    def excess_variance(self) -> float:
        return self.corrector.excess_variance

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return self.predictor.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        step = self.predictor.step(problem, x, t, s, carry, noise)
        x = step.x
        for _ in range(self.corrector_steps):
            x = self.corrector.correct(problem, x, s, noise)
        return step._replace(x=x)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.predictor.to_data(problem, x, t, s, carry, noise)
