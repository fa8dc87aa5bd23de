"""Exponential integrators: the linear part of the ODE is solved exactly, the prediction is interpolated in lam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .coefficients import phi1, phi2
from .types import Node, Noise, Problem, Solver, Step, solvers


@solvers.register(
    "dpmpp_2m",
    aliases=("dpm++2m", "dpmsolver++", "DPMSolverMultistepScheduler"),
    kind="ODE",
    order=2,
    reference="Lu et al. 2022, arXiv:2211.01095, algorithm 2",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s phi1(h) (x0 + (x0 - x0_before) h / (2 h_before))",
)
@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M): two predictions of x0, interpolated linearly in lam.

    With h = lam_s - lam_t and d = (x0 - x0_before) h / h_before:
    x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + w d), w = phi1(h) / 2 (``midpoint``) or the exact integral
    phi2(h) (``heun``). The first step has no earlier prediction and is Euler's, which keeps the global order.
    """

    variant: Literal["midpoint", "heun"] = "midpoint"

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x0 = problem.predict(x, t).x0
        h = s.lam - t.lam
        moved = (s.sigma / t.sigma) * x + (s.alpha * phi1(h)) * x0
        if carry is not None:
            x0_before, lam_before = carry
            weight = phi1(h) / 2 if self.variant == "midpoint" else phi2(h)
            moved = moved + (s.alpha * weight * h / (t.lam - lam_before)) * (x0 - x0_before)
        return Step(moved, (x0, t.lam))
