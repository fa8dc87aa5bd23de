"""Measured orders of convergence.

Deterministic solvers run on a one-dimensional Gaussian mixture and are compared with a solution accurate to rounding.
Stochastic solvers run on Gaussian data, where the terminal variance is known. There the k-th noise draw is sqrt(d)
times the k-th basis vector of the state space, so |x|^2 / d is exactly the variance that independent draws would have.
One deterministic run thus measures a weak order, without Monte Carlo.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..adaptive.base import Adaptive
from ..loop import Solution, solve
from ..time_grids.base import grid
from ..types.node import Node
from ..types.schedule import Schedule
from ..types.solver import Solver
from .problems import GaussianData, Mixture, OrthogonalNoise, exact_solution

# fine enough to be near the asymptote, coarse enough for the error to exceed rounding
STEPS = (42, 84, 168, 336)  # multiples of three, since some methods take their steps in threes
ROUNDING = 1e-12
# variances of the data, for weak orders: two, because the leading error of a method may vanish at one of them
VARIANCES = torch.tensor([[0.04], [0.3]], dtype=torch.float64)
ADAPTIVE_STEPS = (20, 40, 80, 160)
STOCHASTIC_STEPS = (160, 320, 640, 1280)
FINER = 3  # how often the steps of the finest grid may be halved


def terminal_variance(solver: Solver, problem: GaussianData, nodes: Sequence[Node]) -> float:
    """The exact variance of a stochastic solver's outcome on Gaussian data, for a start with the exact law."""
    return float((_propagate(solver, problem, nodes).x ** 2).mean())


def _propagate(solver: Solver, problem: GaussianData, nodes: Sequence[Node]) -> Solution:
    draws = _Draws()
    solve(solver, GaussianData(problem.path), torch.ones(1, 1, dtype=torch.float64), nodes, draws)
    variance = torch.as_tensor(problem.variance(nodes[0]), dtype=torch.float64)
    noise = OrthogonalNoise(draws.count + 1, rows=variance.numel())
    x = variance.sqrt() * noise(nodes[0], nodes[0])
    return solve(solver, problem, x, nodes, noise)


class _Draws:
    """A noise source of ones that counts a solver's draws."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, t: Node, s: Node) -> Tensor:
        self.count += 1
        return torch.ones(1, 1, dtype=torch.float64)


def measured_order(
    solver: Solver, schedule: Schedule, spacing: str = "logsnr"
) -> tuple[float, list[tuple[int, float]]]:
    """The measured order of convergence, and the (NFE, error) pairs that it is computed from.

    The error is the largest over the samples for deterministic solvers, and the relative error of the terminal variance
    for stochastic ones. The order is minus the slope of log error against log steps: the least-squares slope over the
    finest three runs, without those whose error is rounding.

    There are four runs. If the order is below the declared one, a further run has twice the steps, and up to two more
    follow while the slope still rises. Errors of opposite sign bend the line at a few hundred steps, more so at high
    order. Adaptive solvers take one inner step per interval. Those that begin at a low order instead run at decreasing
    tolerances, and their NFE replaces the number of steps.
    """
    counts: tuple[int, ...] = STOCHASTIC_STEPS if solver.stochastic else STEPS
    if solver.adaptive:
        counts = ADAPTIVE_STEPS
        solver = dataclasses.replace(solver, **{"rtol": 1e9, "atol": 1e9, "first_step": math.inf})  # type: ignore[type-var]
    measure = _variance_error if solver.stochastic else path_error
    ramps = isinstance(solver, Adaptive) and solver.ramps
    points: list[tuple[int, float]] = []
    pairs: list[tuple[int, float]] = []
    for n in (*counts, *(counts[-1] * 2**k for k in range(1, FINER + 1))):
        more = len(points) - len(counts)
        if more >= 0 and (reaches(solver, slope(pairs)) or (more > 0 and not _rising(pairs))):
            break
        points.append(
            _tolerance_error(solver, schedule, n) if ramps else measure(solver, schedule, grid(spacing, schedule, n))
        )
        pairs.append((points[-1][0] if ramps else n, abs(points[-1][1])))
    return slope(pairs), points


def slope(pairs: Sequence[tuple[int, float]]) -> float:
    """Minus the slope of log error against log steps, over the last three (steps, error) that are above rounding."""
    clear = [pair for pair in pairs if pair[1] > ROUNDING][-3:]
    x, y = np.log(clear if len(clear) > 1 else pairs[:2]).T
    return -float(np.polyfit(x, y, 1)[0])


def _rising(pairs: Sequence[tuple[int, float]]) -> bool:
    """Whether the last slope exceeds the one before, and all three errors exceed rounding."""
    last = pairs[-3:]
    return min(error for _, error in last) > ROUNDING and slope(last[1:]) > slope(last[:2])


def path_error(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> tuple[int, float]:
    """The NFE, and the largest error at the last node over nine samples of a mixture."""
    problem = Mixture(schedule)
    x = math.hypot(nodes[0].alpha, nodes[0].sigma) * torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1)
    solution = solve(solver, problem, x, nodes)
    error = (solution.x - exact_solution(problem, x, nodes[0], nodes[-1])).abs().max()
    return int(solution.nfe.max()), float(error)


def _tolerance_error(solver: Solver, schedule: Schedule, n: int) -> tuple[int, float]:
    """The NFE and the error of an adaptive solver, at a tolerance at which it takes about n steps."""
    tolerance = (6 / n) ** (solver.order + 1)
    options = {"rtol": tolerance, "atol": tolerance, "first_step": None}
    return path_error(dataclasses.replace(solver, **options), schedule, grid("uniform", schedule, 1))  # type: ignore[type-var]


def _variance_error(solver: Solver, schedule: Schedule, nodes: Sequence[Node]) -> tuple[int, float]:
    problem = GaussianData(schedule, VARIANCES)
    limit = solver.limit_variance(problem.variance(nodes[-1]), nodes[-1])
    solution = _propagate(solver, problem, nodes)
    errors = (solution.x**2).mean(1, keepdim=True) / limit - 1
    return int(solution.nfe.max()), float(errors.abs().max())


def reaches(solver: Solver, order: float) -> bool:
    """Whether a measured order is at least the declared one less 0.2."""
    return order >= solver.order - 0.2 and solver.order > 0
