"""What the solver of a likelihood errs, told from two coarser solves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError

from ..sampling.plan import Plan

LOOSER = 4.0  # each time, for solvers that choose their steps: of order 5, about three quarters of the steps
ROUNDING = 1e-12  # of a value: distances below it have no ratio
LEAST = 4  # steps, of which a quarter is left


def bound(value: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
    """More than what a value errs: (2 a + b) max(1, 2 a / b) nats (B,), with the distances a = |value - half| and
    b = |half - quarter| to two coarser solves, all of them log-densities (B,).

    Where the error at least halves from one solve to the next, it is at most a. Twice that leaves room for a solve that
    is not quite there, and b guards the samples whose two finest values happen to agree. Where the distances do not
    halve, nothing converges yet, and the bound grows with their ratio. Each sample's is of that sample alone.
    """
    a, b = (value - half).abs(), (half - quarter).abs()
    rounding = ROUNDING * (1 + value.abs())
    return (2 * a + b) * (2 * a / torch.maximum(b, rounding)).clamp(min=1)


def coarser(plan: Plan) -> tuple[Plan, Plan]:
    """The plan with half the steps and the one with a quarter; or with tolerances 4 and 16 times as loose.

    Raises:
        InputError: the plan has fewer than four steps.
    """
    if plan.solver.adaptive:
        solver: Any = plan.solver
        looser = [replace(solver, rtol=solver.rtol * f, atol=solver.atol * f) for f in (LOOSER, LOOSER**2)]
        return replace(plan, solver=looser[0]), replace(plan, solver=looser[1])
    if plan.steps < LEAST:
        raise InputError(f"error=True halves the steps of a grid twice: it takes at least {LEAST}, got {plan.steps}")
    if plan.rule is None or plan.rule.fixed:
        half, quarter = ((*plan.nodes[:-1][::every], plan.nodes[-1]) for every in (2, 4))
        return replace(plan, nodes=half), replace(plan, nodes=quarter)
    return plan.in_steps(plan.steps // 2), plan.in_steps(plan.steps // 4)
