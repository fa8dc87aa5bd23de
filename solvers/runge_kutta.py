"""Runge-Kutta methods in the coordinates where every Gaussian path has the same ODE, d(x / alpha) / d ratio = eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .types import Node, Noise, Problem, Solver, Step, solvers


@dataclass(frozen=True)
class Tableau:
    """Butcher's tableau of an explicit method: nodes c, stage weights a (row i has i entries), weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


class RungeKutta(Solver):
    """An explicit Runge-Kutta method; a subclass states its tableau.

    With h = ratio_s - ratio_t and stages eps_i at ratio_t + c_i h:
    x_s / alpha_s = x / alpha_t + h sum_i b_i eps_i.
    """

    tableau: ClassVar[Tableau]

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        h = s.ratio - t.ratio
        slopes: list[Tensor] = []
        for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
            node = t if c == 0 else s if c == 1 else problem.node_of_lam(-math.log(t.ratio + c * h))
            slopes.append(problem.predict(_move(x, t, node, h, row, slopes), node).eps)
        return Step(_move(x, t, s, h, self.tableau.b, slopes))


def _move(x: Tensor, t: Node, s: Node, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    if s is t:
        return x
    x = (s.alpha / t.alpha) * x
    for weight, eps in zip(weights, slopes, strict=True):
        if weight:
            x = x + (s.alpha * h * weight) * eps
    return x


@solvers.register(
    "euler",
    aliases=("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"),
    kind="ODE",
    order=1,
    reference="Karras et al. 2022, arXiv:2206.00364, section 3",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) eps",
)
@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method on the probability-flow ODE, the same numbers as ``ddim`` at eta = 0."""

    tableau: ClassVar[Tableau] = Tableau((0.0,), ((),), (1.0,))


@solvers.register(
    "heun",
    aliases=("HeunDiscreteScheduler",),
    kind="ODE",
    order=2,
    evaluations=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 1",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) (eps + eps') / 2, eps' at Euler's x_s",
)
@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method, EDM's deterministic sampler."""

    tableau: ClassVar[Tableau] = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
