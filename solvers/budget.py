"""Model evaluations (NFE), counted before a solve: the cost of a solver on a grid, and the steps for a given cost.

A solver of discrete states is counted on one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, positive_integer
from .loop import solve
from .time_grids.base import Grid, grid
from .types.node import Node, Prediction
from .types.problem import Problem
from .types.process import DiscretePrediction, Process
from .types.schedule import Schedule
from .types.solver import Solver, solvers


class FreeModel(Problem):
    """A model that costs nothing, for counting evaluations before a solve.

    It predicts x0 = 0; of discrete states, that all clean tokens are alike.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.space = "discrete" if isinstance(schedule, Process) else "gaussian"

    @property
    def path(self) -> Schedule:
        return self.schedule

    @property
    def time_free(self) -> bool:
        """Whether a model of the process may be without time."""
        return isinstance(self.schedule, Process) and self.schedule.mask is not None and self.schedule.mixture

    def predict(self, x: Tensor, node: Any) -> Any:
        if isinstance(self.schedule, Process):
            law = torch.ones(*x.shape, self.schedule.values, dtype=torch.float64)
            return DiscretePrediction(self.schedule.possible(law, x, node))
        node = node.like(x)
        return Prediction(0 * x, (1 / node.sigma) * x, 0 * x)

    def log_prob(self, x: Tensor, node: Any) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype)


def _half(t: Node, s: Node) -> Tensor:
    """Noise (1, 1) that costs nothing to draw: a number that a normal and a uniform one can be."""
    return torch.full((1, 1), 0.5, dtype=torch.float64)


def evaluations(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> int:
    """Model evaluations (NFE) of one sample on these nodes, counted by running the solver on a free model."""
    return evaluations_of(solver, FreeModel(schedule), nodes)


def evaluations_of(solver: Solver, model: FreeModel, nodes: Sequence[Node]) -> int:
    """Model evaluations (NFE) of one sample on these nodes, as a free model counts or divides the solve."""
    start = torch.ones(1, 1, dtype=torch.float64)
    if isinstance(model.schedule, Process):
        start = torch.full((1, 1), int(model.schedule.prior.argmax()))
    return int(solve(solver, model, start, nodes, _half).nfe.item())


def startup(solver: Solver, schedule: Schedule) -> int:
    """Start-up cost: evaluations that a multistep solver spends on its first steps beyond those of its later ones.

    It is counted on 20 steps that end at t_min, and is 0 for adaptive solvers, which have no fixed cost.
    """
    if solver.adaptive:
        return 0
    return max(0, evaluations(solver, schedule, grid("logsnr", schedule, 20)) - 20 * solver.evaluations)


def steps_of_nfe(
    solver: Solver,
    rule: Grid,
    schedule: Schedule,
    nfe: int,
    t_min: float | None = None,
    t_max: float | None = None,
    cost_of: Callable[[Sequence[Node]], int] | None = None,
    name: str = "nfe",
) -> int:
    """The largest number of steps whose counted evaluations are at most ``nfe``.

    Args:
        cost_of: the cost of a solve along some nodes, if it is not the solver's evaluations.
        name: the name of the budget in messages.

    Raises:
        InputError: nfe is not a positive integer or is too small for the solver, or the solver or the grid sets its
            own steps.
    """
    positive_integer(name, nfe)
    if rule.fixed:
        raise InputError(f"{rule} sets its own steps, so {name}={nfe} cannot be set")
    if solver.adaptive:
        advice = "; use its tolerances" if "rtol" in solvers.info_of(solver).options else ""
        raise InputError(f"{solver} chooses its own steps, so {name}={nfe} cannot be set{advice}")

    def cost(steps: int) -> int:
        nodes = rule.nodes(schedule, steps, t_min, t_max)
        return evaluations(solver, schedule, nodes) if cost_of is None else cost_of(nodes)

    least = cost(1)
    if least > nfe:
        raise InputError(f"{name}={nfe} is too small for {solver}: one step takes {least}")
    # every step takes at least one evaluation, but for a first one that is free (``afs``); most take
    # ``solver.evaluations``, so that two or three counts suffice
    low, high, trial = 1, nfe + 1 + (least == 0), max(1, 1 + (nfe - least) // solver.evaluations)
    while high - low > 1:
        trial = trial if low < trial < high else (low + high) // 2
        left = nfe - cost(trial)
        low, high = (trial, high) if left >= 0 else (low, trial)
        trial += max(1, left // solver.evaluations) if left >= 0 else min(-1, left // solver.evaluations)
    return low
