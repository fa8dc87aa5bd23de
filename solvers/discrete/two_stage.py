"""Solvers of discrete states with two evaluations a step: a token moves, and its rates are corrected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.ranges import Inside
from ..types.process import Clock, Process, ProcessNode
from ..types.solver import Step, solvers
from .base import DiscreteSolver, Moves, Product, evaluated
from .rates import FromRates, Kernel, moved


@dataclass(frozen=True)
class TwoStages(FromRates):
    """The base class of methods that evaluate the rates at the start of a step and at a point between.

    Args:
        theta: the place of the second evaluation, as a share of the step.
        clock: the clock of a step.
    """

    theta: Inside = 0.5
    clock: Clock = "natural"

    def between(self, problem: Any, t: ProcessNode, s: ProcessNode) -> tuple[float, ProcessNode]:
        """The duration of a step, and its node between."""
        process = problem.path
        return process.elapsed(t, s, self.clock), process.between(t, s, self.theta, self.clock)


@solvers.register(
    "theta_trapezoidal",
    aliases=("theta_trap",),
    kind="rates",
    order=2,
    native="rates",
    evaluations=2,
    reference="Ren et al. 2025, arXiv:2502.00234, algorithm 2; Anderson and Mattingly 2011, Commun. Math. Sci. 9, 301",
    formula="y at the rates r(x) over theta h; then from y over (1 - theta) h at max(0, a1 r(y) - a2 r(x)), "
    "a1 = 1 / (2 theta (1 - theta)), a2 = a1 - 1",
    note="order 2 where no rate of a token that stayed is clamped at 0, otherwise 1. Sample.error is the clamped mass: "
    "the probability of moves that was set to 0, summed over steps and tokens",
    shared=("trapezoidal", "heun"),
)
@dataclass(frozen=True)
class ThetaTrapezoidal(TwoStages):
    """The discrete counterpart of Heun's method: rates at the start, at a point between, and their extrapolation.

    A move may lower another token's rate so much that its extrapolation is negative; it is then set to 0, and the order
    falls to 1. ``Sample.error`` reports how much was set to 0.

    Args:
        theta: the place of the second evaluation, as a share of the step.
        kernel: how tokens move at constant rates. All but ``hold`` have order 1.
        clock: the clock of a step.
        clamp: False keeps negative rates. Then the laws of a step may be negative: only exact kernels can use them.
    """

    kernel: Kernel = "hold"
    clamp: bool = True

    @property
    def order(self) -> float:
        """2, or 1 with a kernel of order 1."""
        return 2.0 if self.kernel == "hold" else 1.0

    def stages(self, problem: Any, x: Tensor, first: Tensor, t: ProcessNode, s: ProcessNode) -> Moves:
        process, theta = problem.path, self.theta
        duration, between = self.between(problem, t, s)
        y = yield Product(moved(first, x, theta * duration, self.kernel), x)
        second = process.rates(evaluated(problem, y, between), y, between, self.clock)
        late = 1 / (2 * theta * (1 - theta))
        rates = (late * second - (late - 1) * first).scatter(-1, y[..., None], 0.0)
        cut = torch.where((x == y)[..., None], rates, 0.0).clamp_max(0).flatten(1).sum(1)
        rates = rates.clamp_min(0) if self.clamp else rates
        x = yield Product(moved(rates, y, (1 - theta) * duration, self.kernel), y)
        return Step(x, error=(1 - theta) * duration * cut.abs())


@solvers.register(
    "theta_rk2",
    kind="rates",
    order=1,
    native="rates",
    evaluations=2,
    reference="Ren et al. 2025, arXiv:2502.00234, algorithm 1",
    formula="y at the rates r(x) over theta h; then from x over h at max(0, (1 - c) r(x) + c r(y)), c = 1 / (2 theta)",
    note="order 1, as measured: the move to y is drawn again, not kept",
)
@dataclass(frozen=True)
class ThetaRK2(TwoStages):
    """A midpoint rule whose step starts again from x: of order 1 for discrete states."""

    def stages(self, problem: Any, x: Tensor, first: Tensor, t: ProcessNode, s: ProcessNode) -> Moves:
        process, theta = problem.path, self.theta
        duration, between = self.between(problem, t, s)
        y = yield Product(moved(first, x, theta * duration), x)
        second = process.rates(evaluated(problem, y, between), y, between, self.clock)
        share = 1 / (2 * theta)
        rates = ((1 - share) * first + share * second).clamp_min(0).scatter(-1, x[..., None], 0.0)
        x = yield Product(moved(rates, x, duration), x)
        return Step(x)


@solvers.register(
    "theta_trap_hazard",
    kind="posterior",
    order=2,
    native="x0",
    evaluations=2,
    reference="Ren et al. 2025, arXiv:2502.00234, algorithm 2, with the exact hazard of a mask",
    formula="y: unmasked with probability 1 - exp(-theta L), tokens from x0(x); then with 1 - exp(-(1 - theta) L), "
    "tokens ~ max(0, a1 x0(y) - a2 x0(x)), L = log((1 - alpha_t) / (1 - alpha_s))",
    note="for processes with a mask. Order 2 where nothing is clamped at 0; Sample.error as of theta_trapezoidal",
)
@dataclass(frozen=True)
class ThetaTrapHazard(DiscreteSolver):
    """``theta_trapezoidal`` for masks, with the exact probability that a token is unmasked in each part of a step.

    Args:
        theta: the place of the second evaluation, as a share of the step on the natural clock.
    """

    theta: Inside = 0.5

    def check(self, process: Process) -> None:
        if process.mask is None or not process.mixture:
            raise InputError(f"theta_trap_hazard unmasks tokens, which {process} does not mask: use theta_trapezoidal")

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        process, theta = problem.path, self.theta
        length, between = process.elapsed(t, s), process.between(t, s, theta)
        # on the natural clock, the rates of a masked token are the law of its value
        first = torch.where((x == process.mask)[..., None], evaluated(problem, x, t).x0, 0.0)
        y = yield Product(moved(first, x, theta * length), x)
        masked = (y == process.mask)[..., None]
        late = 1 / (2 * theta * (1 - theta))
        law = torch.where(masked, late * evaluated(problem, y, between).x0 - (late - 1) * first, 0.0)
        cut = law.clamp_max(0).flatten(1).sum(1)
        law = law.clamp_min(0)
        law = law / torch.where(masked, law.sum(-1, keepdim=True), 1.0)
        x = yield Product(moved(law, y, (1 - theta) * length), y)
        return Step(x, carry, error=(1 - theta) * length * cut.abs())
