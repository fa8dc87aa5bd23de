"""The law of one step of a stochastic solver: normal around a mean that is known, or the solver is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction, Problem, Solver
from solvers.types.schedule import Schedule

SOLVERS = "ddpm or ddim(eta=1)"  # what a refused solver may be replaced by


class Kernel(NamedTuple):
    """The law of one step of a stochastic solver given the prediction: normal, with one deviation in every coordinate.

    Attributes:
        on_x0: how far the mean moves, for each unit that x0 does while x = alpha x0 + sigma eps remains true.
        deviation: the standard deviation; 0 of a step without noise.
    """

    on_x0: float
    deviation: float


class Answer(Problem):
    """A problem whose prediction is known already; it notes where it was asked."""

    def __init__(self, path: Schedule, found: Prediction) -> None:
        self._path, self.found = path, found
        self.asked: list[tuple[Tensor, Any]] = []

    @property
    def path(self) -> Schedule:
        return self._path

    def predict(self, x: Tensor, node: Any) -> Prediction:
        self.asked.append((x, node))
        return self.found


def advance(solver: Solver, problem: Problem, x: Tensor, t: Node, s: Node, z: Tensor) -> tuple[Tensor, int]:
    """The state (B, *) at s after one step with the noise z (B, *), and how often the solver drew noise.

    Raises:
        InputError: the solver remembers earlier steps.
    """
    draws = []

    def noise(t: Node, s: Node) -> Tensor:
        draws.append((t, s))
        return z

    made = (solver.to_data if s.clean else solver.step)(problem, x, t, s, None, noise)
    return made.x, len(draws)


def kernel(solver: Solver, path: Schedule, t: Node, s: Node) -> Kernel:
    """The law of a step from t to s, read off a step of two numbers.

    Raises:
        InputError: it is not normal with a known mean: the step evaluates the model elsewhere or not just once, or
            draws noise more than once.
    """
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x0 = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    probe, x = Answer(path, Prediction(x0, -(t.alpha / t.sigma) * x0)), torch.zeros_like(z)
    moved, draws = advance(solver, probe, x, t, s, z)
    if len(probe.asked) != 1 or draws > 1 or probe.asked[0][1] != t or not torch.equal(probe.asked[0][0], x):
        raise InputError(f"particles are weighted by the density of each step, which {solver} has not: use {SOLVERS}")
    return Kernel(float(moved[0, 0]), abs(float(moved[1, 0])))


def check_solver(name: str, solver: Solver, nodes: Sequence[Node], path: Schedule) -> None:
    """Rejects a solver whose steps have no density.

    Raises:
        InputError: it draws no noise, remembers earlier steps, chooses its own, or is not linear.
    """
    if not solver.stochastic:
        raise InputError(f"{name} needs a solver that draws noise, which {solver} does not: use {SOLVERS}")
    problem = Answer(path, Prediction(torch.zeros(1, 1), torch.zeros(1, 1)))
    if solver.adaptive or solver.nonlinear or solver.init(problem, torch.zeros(1, 1), nodes) is not None:
        raise InputError(
            f"{name} weighs particles by the density of one step at a time; {solver} has none: use {SOLVERS}"
        )
