"""The only loop over time: sampling, encoding and likelihood all call ``solve``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .time_grids.base import checked
from .types.answers import call, predicted, replacement, version
from .types.node import AnyNode, Prediction, Rows
from .types.problem import Problem, ProblemWrapper, as_problem
from .types.solver import Noise, Solver, Step, as_source

Hook = Callable[[Tensor, Any], "Tensor | None"]
"""Receives the state (B, *) and its node, of the kind of the solve's nodes; returns a new state, or None."""


@dataclass(frozen=True)
class Solution:
    """The result of a solve.

    Attributes:
        x: the state (B, *) at ``node``.
        node: the last node, of the kind of the solve's nodes.
        nfe: model evaluations (NFE) per sample (B,), counted during the solve.
        calls: number of model calls; less than ``nfe`` if one call evaluates several nodes of a sample.
        error: sum of the steps' error estimates (B,); None if the solver makes none.
        accepted, rejected: numbers of inner steps (B,) of solvers that choose their own steps.
        failed: why the solver gave up some of the samples, by row; their states are NaN.
        effective: the least effective number of particles (B,) of each sample; None if it has no particles.
    """

    x: Tensor
    node: Any
    nfe: Tensor
    calls: int
    error: Tensor | None
    accepted: Tensor
    rejected: Tensor
    failed: Mapping[int, str] = field(default_factory=dict)
    effective: Tensor | None = None

    def after(self, earlier: Solution) -> Solution:
        """The solution of an earlier part and this one, which went on from there: the sums of both."""
        errors = [part.error for part in (earlier, self) if part.error is not None]
        return Solution(
            self.x,
            self.node,
            earlier.nfe + self.nfe,
            earlier.calls + self.calls,
            sum(errors[1:], errors[0]) if errors else None,
            earlier.accepted + self.accepted,
            earlier.rejected + self.rejected,
            {**self.failed, **earlier.failed},
        )


class Tally:
    """The count of model evaluations per sample (B,), and of model calls."""

    def __init__(self, count: int) -> None:
        self.nfe, self.calls = torch.zeros(count, dtype=torch.long), 0


class Counted(ProblemWrapper):
    """A problem that counts the evaluations of each sample; ``rows`` are the indices of its samples in the tally."""

    def __init__(self, problem: Problem, tally: Tally, rows: Tensor | None = None) -> None:
        super().__init__(problem)
        self.tally = tally
        self.rows = torch.arange(len(tally.nfe)) if rows is None else rows

    def predict(self, x: Tensor, node: Any) -> Prediction:
        self.tally.nfe.index_add_(0, self.rows, torch.ones_like(self.rows))
        self.tally.calls += 1
        if self.problem.checked:
            return self.problem.predict(x, node)
        gaussian = self.space == "gaussian"
        found: Prediction = (predicted if gaussian else partial(call, "the model"))(self.problem.predict, x, node)
        return found

    def select(self, rows: Rows) -> Counted:
        return Counted(self.problem.select(rows), self.tally, self.rows[rows])


def solve(
    solver: Solver,
    problem: Problem | Any,
    x: Tensor,
    nodes: Sequence[AnyNode],
    noise: Noise | None = None,
    hooks: Sequence[Hook] = (),
    strict: bool = True,
) -> Solution:
    """Computes the state at the last node from that at the first.

    The loop uses two facts of a node: its noise level, which orders the nodes, and whether it is clean. Therefore it
    works for every space of states. Where a problem has several parts (``Problem.pieces``), the solver starts again at
    each.

    Args:
        solver: the method.
        problem: the path and the model: a ``Problem``, or an object that ``as_problem`` accepts.
        x: the state (B, *) at the first node.
        nodes: the nodes of a grid, from noise to data or from data to noise.
        noise: the noise source; stochastic solvers require it.
        hooks: functions that are called with (x, node) after every step; a returned tensor replaces x.
        strict: raise an error if an adaptive solver gives up a sample; otherwise its state becomes NaN, and ``failed``
            has the reason.

    Raises:
        InputError: with ``strict``, the solver gives up a sample; a stochastic solver gets no noise, or goes from data
            to noise; the solver and the problem have different spaces of states; the problem does not accept the
            solver, or has several parts and the solver fixed nodes.
    """
    ordered: tuple[Any, ...] = checked(tuple(nodes))
    problem = as_problem(problem)
    if solver.space != problem.space:
        raise InputError(f"{solver} solves for {solver.space} states, but the problem has {problem.space} states")
    if solver.stochastic:
        if ordered[-1].noise_level > ordered[0].noise_level:
            raise InputError(f"{solver} draws noise and cannot encode; use a deterministic solver")
        if noise is None:
            raise InputError(f"{solver} draws noise: give it a noise source")
        noise = as_source(noise) if isinstance(x, Tensor) else noise
    tally, made = Tally(x.shape[0]), Step(x)
    for part, places in parts_of(solver, problem, ordered):
        counted = Counted(part, tally)
        made = made._replace(carry=solver.init(counted, made.x, places))
        for t, s in pairwise(places):
            advance = solver.to_data if s.clean else solver.step
            made = advance(counted, made.x, t, s, made.carry, noise).after(made)
            failed = made.failed or {}
            if failed and strict:
                raise InputError(f"{solver}: sample {min(failed)}: {failed[min(failed)]}")
            x, replaced = run_hooks(made.x, s, hooks)
            if replaced:
                made = made._replace(x=x, carry=solver.replaced(made.carry, x))
    none = torch.zeros_like(tally.nfe)
    accepted, rejected = (none if part is None else part for part in (made.accepted, made.rejected))
    failed = made.failed or {}
    return Solution(made.x, ordered[-1], tally.nfe, tally.calls, made.error, accepted, rejected, failed)


def parts_of(solver: Solver, problem: Problem, nodes: Sequence[Any]) -> Sequence[tuple[Problem, Sequence[Any]]]:
    """The parts of a solve along ``nodes``, see ``Problem.pieces``.

    Raises:
        InputError: the problem does not accept the solver, or has several parts and the solver fixed nodes.
    """
    problem.check_solver(solver)
    parts = problem.pieces(nodes)
    if len(parts) > 1 and solver.nodes is not None:
        raise InputError(
            f"{solver} has fixed nodes, but this model's prediction jumps at noise levels, where a solve must be "
            "divided: use a different solver"
        )
    return parts


def run_hooks(x: Tensor, node: Any, hooks: Sequence[Hook]) -> tuple[Tensor, bool]:
    """Calls every hook; returns the state (B, *), and whether a hook replaced it or wrote into it."""
    seen, before = x, version(x) if hooks else 0
    for hook in hooks:
        found = replacement(hook, x, node)
        x = x if found is None else found
    return x, bool(hooks) and (x is not seen or version(x) != before)
