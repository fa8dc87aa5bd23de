"""The only loop over time: sampling, encoding and likelihood are calls of ``solve``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .control import Control, FixedGrid
from .errors import InputError, positive_integer
from .grids import Grid, Schedule, checked
from .types import Node, Noise, Prediction, Problem, Solver, Step

Hook = Callable[[Tensor, Node], "Tensor | None"]


@dataclass(frozen=True)
class Solution:
    """Where a solve arrived.

    Attributes:
        x: the state (B, *) at ``node``.
        node: the last node.
        nfe: model evaluations per sample (B,), counted as they were made.
    """

    x: Tensor
    node: Node
    nfe: Tensor


class Counted:
    """A problem that counts the evaluations of each sample."""

    def __init__(self, problem: Problem, counts: Tensor) -> None:
        self.problem, self.counts = problem, counts

    def node(self, t: float) -> Node:
        return self.problem.node(t)

    def node_of_lam(self, lam: float) -> Node:
        return self.problem.node_of_lam(lam)

    def predict(self, x: Tensor, node: Node) -> Prediction:
        self.counts += 1
        return self.problem.predict(x, node)

    def select(self, rows: slice) -> Counted:
        select: Callable[[slice], Problem] | None = getattr(self.problem, "select", None)
        return Counted(select(rows) if select else self.problem, self.counts[rows])


def solve(
    solver: Solver,
    problem: Problem,
    x: Tensor,
    control: Control | Sequence[Node],
    noise: Noise | None = None,
    hooks: Sequence[Hook] = (),
) -> Solution:
    """Carries x from the control's first node to its last.

    Args:
        solver: the method.
        problem: the path and the model.
        x: the state (B, *) at the first node.
        control: a control, or the nodes of a fixed grid; from noise to data or the other way.
        noise: needed by stochastic solvers.
        hooks: each is called with (x, node) after every step; what it returns, if not None, replaces x.

    Raises:
        InputError: a stochastic solver without noise, or asked to go from data to noise.
    """
    if not hasattr(control, "intervals"):
        control = FixedGrid(checked(tuple(control)))
    control = cast(Control, control)
    if solver.stochastic:
        if control.end.ratio > control.start.ratio:
            raise InputError(f"{solver} draws noise and cannot encode; take a deterministic solver")
        if noise is None:
            raise InputError(f"{solver} draws noise: give it a noise source")
    counts = torch.zeros(x.shape[0], dtype=torch.long)
    counted = Counted(problem, counts)
    node = control.start
    carry: Any = solver.init(counted, x, node)
    intervals = control.intervals()
    proposal = next(intervals, None)
    while proposal is not None:
        t, node = proposal
        advance = solver.step if node.sigma > 0 else solver.to_data
        step = advance(counted, x, t, node, carry, noise)
        x, carry = step.x, step.carry
        for hook in hooks:
            replaced = hook(x, node)
            x = x if replaced is None else replaced
        proposal = _send(intervals, step)
    return Solution(x, node, counts)


def _send(intervals: Any, step: Step) -> tuple[Node, Node] | None:
    try:
        return cast("tuple[Node, Node]", intervals.send(step))
    except StopIteration:
        return None


class _Silent:
    """A problem and a noise source whose answers cost nothing, for counting evaluations."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def node(self, t: float) -> Node:
        return self.schedule(t)

    def node_of_lam(self, lam: float) -> Node:
        return self.schedule(self.schedule.t_of_lam(lam))

    def predict(self, x: Tensor, node: Node) -> Prediction:
        return Prediction(0 * x, (1 / node.sigma) * x)

    def __call__(self, t: Node, s: Node) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64)


def evaluations(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> int:
    """Model evaluations (NFE) of one sample on these nodes, counted by running the solver on a silent model."""
    silent = _Silent(schedule)
    return int(solve(solver, silent, torch.ones(1, 1, dtype=torch.float64), nodes, silent).nfe.item())


def steps_of_nfe(
    solver: Solver,
    grid: Grid,
    schedule: Schedule,
    nfe: int,
    t_min: float | None = None,
    t_max: float | None = None,
) -> int:
    """The most steps whose counted evaluations are at most ``nfe``.

    Raises:
        InputError: nfe is not a positive integer, too small for the solver, or the solver sets its own steps.
    """
    positive_integer("nfe", nfe)
    if grid.fixed:
        raise InputError(f"{grid} sets its own steps, so nfe={nfe} cannot be set")
    if solver.adaptive:
        raise InputError(f"{solver} chooses its own steps, so nfe={nfe} cannot be set; use its tolerances")

    def cost(steps: int) -> int:
        return evaluations(solver, schedule, grid.nodes(schedule, steps, t_min, t_max))

    least = cost(1)
    if least > nfe:
        raise InputError(f"nfe={nfe} is too small for {solver}: one step takes {least}")
    low, high = 1, nfe + 1  # every step takes at least one evaluation, so nfe + 1 steps are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= nfe else (low, middle)
    return low
