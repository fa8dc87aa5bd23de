"""Base class of wrappers, which are solvers built around another solver, and their checks of the inner solver."""

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
    """A solver around the one in its field ``solver``; it delegates all that it does not override."""

    solver: Solver

    @property
    def inner(self) -> Solver:
        """The wrapped solver."""
        return self.solver

    @property
    def space(self) -> str:  # type: ignore[override]
        return self.inner.space

    @property
    def order(self) -> float:
        return self.inner.order

    @property
    def nodes(self) -> tuple[Node, ...] | None:
        return self.inner.nodes

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
        return self.inner.restartable and not self.plans_grid

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
    name: str, solver: Solver, restartable: bool = False, deterministic: bool = False, other_steps: bool = False
) -> None:
    """Checks that a wrapper can wrap this solver.

    Args:
        name: the wrapper, for the error.
        solver: the inner solver, of Gaussian states. It must not be adaptive.
        restartable: True if the wrapper needs steps that depend on the state alone, not on the steps before.
        deterministic: the wrapper needs a deterministic solver.
        other_steps: True if the wrapper takes steps that are not the grid's.

    Raises:
        InputError: the solver does not fit.
    """
    if solver.space != "gaussian":
        raise InputError(f"{name} wraps solvers of gaussian states, but {solver} solves for {solver.space} states")
    if solver.adaptive:
        raise InputError(f"{name}: {solver} chooses its own steps; take a solver of fixed steps")
    if restartable and not solver.restartable:
        raise InputError(f"{name}: {solver} carries state from step to step; take a single-step solver")
    if other_steps and solver.plans_grid:
        raise InputError(f"{name}: {solver} plans its steps from the whole grid; take a solver that steps from t to s")
    if deterministic and solver.stochastic:
        raise InputError(f"{name}: {solver} draws noise; take a deterministic solver")


def renoise(x: Tensor, t: Node, up: Node, s_noise: float, noise: Noise) -> tuple[Tensor, Node]:
    """Adds the noise of the forward process from t to the noisier node ``up``; returns the new state and its node.

    If ``up`` is not noisier than t, x (B, *) and t are returned as they are: the schedule may end before ``up``.
    """
    if up.ratio <= t.ratio:
        return x, t
    size = s_noise * math.sqrt((up.ratio - t.ratio) * (up.ratio + t.ratio))
    return (up.alpha / t.alpha) * x + (up.alpha * size) * noise(t, t), up
