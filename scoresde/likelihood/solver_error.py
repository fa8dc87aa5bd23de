"""The solver error of a likelihood, estimated from two coarser solves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers import InputError
from solvers.adaptive.embedded_pairs import DPMAdaptive

from ..sampling.plan import Plan

LOOSER = 4.0  # factor between the tolerances of adaptive solvers; at order 5 it saves about a quarter of the steps
ROUNDING = 1e-12  # relative to a value: smaller distances are rounding, and their ratio means nothing
LEAST = 4  # the fewest steps, so that a quarter of them is at least one


def bound(value: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
    """An estimated bound of the error of ``value``: (2 a + b) max(1, 2 a / b) nats (B,).

    ``half`` and ``quarter`` are the values of two coarser solves, all three log-densities (B,), at the distances
    a = |value - half| and b = |half - quarter|.

    If the error at least halves from each solve to the next finer one, it is at most a. The factor 2 allows for solves
    that do not quite halve it, and b protects samples whose two finest values agree by chance. If the distances do not
    halve, the solves do not converge yet, and the bound grows with their ratio. The bound of a sample depends only on
    that sample.
    """
    a, b = (value - half).abs(), (half - quarter).abs()
    rounding = ROUNDING * (1 + value.abs())
    return (2 * a + b) * (2 * a / torch.maximum(b, rounding)).clamp(min=1)


def _looser(solver: Any, factor: float) -> Any:
    """An adaptive solver with larger tolerances, and steps that may be longer by the cube root of the factor.

    Where the greatest length decides all steps, as for ``dpm_adaptive`` at a point that the ODE does not move, three
    solves with the same limit would take the same steps and agree, however wrong they are.
    """
    made = replace(solver, rtol=factor * solver.rtol, atol=factor * solver.atol)
    limited = isinstance(solver, DPMAdaptive) and math.isfinite(solver.longest)
    return replace(made, max_step=solver.longest * factor ** (1 / 3)) if limited else made


def coarser(plan: Plan) -> tuple[Plan, Plan]:
    """The plans with a half and a quarter of the steps; if adaptive, with tolerances 4 and 16 times as large, and
    longer steps where a solver limits them.

    Raises:
        InputError: the plan has fewer than four steps.
    """
    if plan.solver.adaptive:
        return tuple(replace(plan, solver=_looser(plan.solver, f)) for f in (LOOSER, LOOSER**2))  # type: ignore[return-value]
    if plan.steps < LEAST:
        raise InputError(f"error=True halves the steps of a grid twice: it needs at least {LEAST}, got {plan.steps}")
    if plan.rule is None or plan.rule.fixed:
        half, quarter = ((*plan.nodes[:-1][::every], plan.nodes[-1]) for every in (2, 4))
        return replace(plan, nodes=half), replace(plan, nodes=quarter)
    return plan.in_steps(plan.steps // 2), plan.in_steps(plan.steps // 4)
