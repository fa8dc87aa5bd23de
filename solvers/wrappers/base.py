"""A solver around another one: what wrappers share, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step


class Wrapper(Solver):
    """A solver that adds to the one in its field ``solver``; whatever it does not override is the inner solver's."""

    solver: Solver

    @property
    def inner(self) -> Solver:
        """The solver inside."""
        return self.solver

    @property
    def space(self) -> str:  # type: ignore[override]
        return self.inner.space

    @property
    def order(self) -> float:
        return self.inner.order

    @property
    def stochastic(self) -> bool:
        return self.inner.stochastic

    @property
    def nonlinear(self) -> str:
        return self.inner.nonlinear

    @property
    def parallel(self) -> bool:
        return self.inner.parallel

    @property
    def restartable(self) -> bool:
        return self.inner.restartable

    @property
    def plans_grid(self) -> bool:
        return self.inner.plans_grid

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.inner.limit_variance(variance, node)

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return self.inner.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.inner.step(problem, x, t, s, carry, noise)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.inner.to_data(problem, x, t, s, carry, noise)

    def replaced(self, carry: Any, x: Tensor) -> Any:
        return self.inner.replaced(carry, x)


def require(
    name: str, solver: Solver, restartable: bool = False, fixed_noise: bool = True, other_steps: bool = False
) -> None:
    """Refuses a solver that a wrapper makes no sense around.

    Args:
        restartable: the wrapper needs steps that can be taken one by one, from any state.
        fixed_noise: False where the wrapper needs a deterministic solver.
        other_steps: the wrapper takes steps that are not the grid's.

    Raises:
        InputError: the solver is adaptive, multistep, stochastic or bound to the grid, where that is refused.
    """
    if solver.adaptive:
        raise InputError(f"{name}: {solver} chooses its own steps; take a solver of fixed steps")
    if restartable and not solver.restartable:
        raise InputError(f"{name}: {solver} carries state from step to step; take a single-step solver")
    if other_steps and solver.plans_grid:
        raise InputError(f"{name}: {solver} plans its steps from the whole grid; take a solver that steps from t to s")
    if not fixed_noise and solver.stochastic:
        raise InputError(f"{name}: {solver} draws noise; take a deterministic solver")


def renoise(x: Tensor, t: Node, up: Node, s_noise: float, noise: Noise) -> tuple[Tensor, Node]:
    """x (B, *) at t with the noise that the forward process adds up to the noisier node ``up``, and that node.

    The state stays where it is if ``up`` is not the noisier one: the schedule may end before.
    """
    if up.ratio <= t.ratio:
        return x, t
    size = s_noise * math.sqrt((up.ratio - t.ratio) * (up.ratio + t.ratio))
    return (up.alpha / t.alpha) * x + (up.alpha * size) * noise(t, t), up
