"""The only loop over time: sampling, encoding and likelihood are calls of ``solve``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .control import Control, FixedGrid
from .errors import InputError, positive_integer
from .grids import Grid, Schedule, checked, grid, node_of_lam
from .types import Node, Noise, Prediction, Problem, Rows, Solver, Step

Hook = Callable[[Tensor, Node], "Tensor | None"]


@dataclass(frozen=True)
class Solution:
    """Where a solve arrived.

    Attributes:
        x: the state (B, *) at ``node``.
        node: the last node.
        nfe: model evaluations per sample (B,), counted as they were made.
        calls: how often the model was called; fewer than ``nfe`` where one call holds several times of a sample.
        error: the steps' error estimates, summed (B,); None from solvers that make none.
        accepted, rejected: inner steps of solvers that choose their own (B,).
    """

    x: Tensor
    node: Node
    nfe: Tensor
    calls: int
    error: Tensor | None
    accepted: Tensor
    rejected: Tensor


class Tally:
    """Model evaluations per sample (B,), and calls."""

    def __init__(self, count: int) -> None:
        self.nfe, self.calls = torch.zeros(count, dtype=torch.long), 0


class Counted:
    """A problem that counts the evaluations of each sample; ``rows`` are the samples' places in the tally."""

    def __init__(self, problem: Problem, tally: Tally, rows: Tensor | None = None) -> None:
        self.problem, self.tally = problem, tally
        self.rows = torch.arange(len(tally.nfe)) if rows is None else rows

    def node(self, t: float) -> Node:
        return self.problem.node(t)

    def node_of_lam(self, lam: float) -> Node:
        return self.problem.node_of_lam(lam)

    def nodes_of_lam(self, lams: Sequence[float]) -> list[Node]:
        return nodes_of_lam(self.problem, lams)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        self.tally.nfe.index_add_(0, self.rows, torch.ones_like(self.rows))
        self.tally.calls += 1
        return self.problem.predict(x, node)

    def select(self, rows: Rows) -> Counted:
        return Counted(select(self.problem, rows), self.tally, self.rows[rows])


def select(problem: Problem, rows: Rows) -> Problem:
    """The problem of some of the samples; the problem itself where samples carry nothing of their own."""
    chosen: Callable[[Rows], Problem] | None = getattr(problem, "select", None)
    return chosen(rows) if chosen else problem


def nodes_of_lam(problem: Problem, lams: Sequence[float]) -> list[Node]:
    """The path at every lam, at once where the problem can."""
    together: Callable[[Sequence[float]], list[Node]] | None = getattr(problem, "nodes_of_lam", None)
    return together(lams) if together else [problem.node_of_lam(lam) for lam in lams]


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
    tally = Tally(x.shape[0])
    counted = Counted(problem, tally)
    node = control.start
    sums: dict[str, Tensor] = {}
    carry: Any = solver.init(counted, x, control.nodes)
    intervals = control.intervals()
    proposal = next(intervals, None)
    while proposal is not None:
        t, node = proposal
        advance = solver.step if node.sigma > 0 else solver.to_data
        step = advance(counted, x, t, node, carry, noise)
        x, carry = step.x, step.carry
        for name in ("error", "accepted", "rejected"):
            if (value := getattr(step, name)) is not None:
                sums[name] = sums[name] + value if name in sums else value
        for hook in hooks:
            replaced = hook(x, node)
            x = x if replaced is None else replaced
        proposal = _send(intervals, step)
    none = torch.zeros_like(tally.nfe)
    accepted, rejected = (sums.get(name, none) for name in ("accepted", "rejected"))
    return Solution(x, node, tally.nfe, tally.calls, sums.get("error"), accepted, rejected)


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
        return node_of_lam(self.schedule, lam)

    def predict(self, x: Tensor, node: Any) -> Prediction:
        node = node.like(x)
        return Prediction(0 * x, (1 / node.sigma) * x, 0 * x)

    def log_prob(self, x: Tensor, node: Any) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype)

    def __call__(self, t: Node, s: Node) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64)


def evaluations(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> int:
    """Model evaluations (NFE) of one sample on these nodes, counted by running the solver on a silent model."""
    silent = _Silent(schedule)
    return int(solve(solver, silent, torch.ones(1, 1, dtype=torch.float64), nodes, silent).nfe.item())


def startup(solver: Solver, schedule: Schedule) -> int:
    """Model evaluations that a solve takes over those of its steps: what a multistep method pays for its start.

    Counted on 20 steps that end at t_min; 0 for adaptive solvers, which have no fixed cost.
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
) -> int:
    """The most steps whose counted evaluations are at most ``nfe``.

    Raises:
        InputError: nfe is not a positive integer, too small for the solver, or the solver sets its own steps.
    """
    positive_integer("nfe", nfe)
    if rule.fixed:
        raise InputError(f"{rule} sets its own steps, so nfe={nfe} cannot be set")
    if solver.adaptive:
        raise InputError(f"{solver} chooses its own steps, so nfe={nfe} cannot be set; use its tolerances")

    def cost(steps: int) -> int:
        return evaluations(solver, schedule, rule.nodes(schedule, steps, t_min, t_max))

    least = cost(1)
    if least > nfe:
        raise InputError(f"nfe={nfe} is too small for {solver}: one step takes {least}")
    low, high = 1, nfe + 1  # every step takes at least one evaluation, so nfe + 1 steps are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= nfe else (low, middle)
    return low
