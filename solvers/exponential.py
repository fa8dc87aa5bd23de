"""DPM-Solver's multistep methods: x0 (++) or eps interpolated in lam, the linear part of the ODE or SDE exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .coefficients import GAUSS, phi2, phi3
from .multistep import Multistep, Row, Start, adams
from .outputs import Quantity
from .ranges import NonNegative
from .types import Node, Problem, solvers


class Exponential(Multistep):
    """x_s / alpha_s = keep x / alpha_t + m0 q + the terms of the differences + noise; in x0, keep = e^-H and
    m0 = phi1(H) with H = (1 + eta^2) h."""

    eta: NonNegative = 0.0
    s_noise: NonNegative = 1.0
    variant: str = "exact"

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def row(self, problem: Problem, s: Node, past: Sequence[Node]) -> Row:
        t = past[0]
        one = self.integral(problem, s, t, past[:1])
        moments = (one.weights[0], *(self._moment(t, s, k) for k in (1, 2)))
        rule = (lambda *_: moments[:1], two_point, three_point)[len(past) - 1]
        weights = rule(moments, [node.lam for node in (s, *past)], self.variant)
        return one._replace(weights=weights, noise=self.s_noise * one.noise)

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Row:
        return adams(problem, s, t, nodes, self.quantity, "lam", self.eta)

    def _moment(self, t: Node, s: Node, k: int) -> float:
        """The kernel's integral against (u / h)^k / k!, u = lam - lam_t."""
        rate, h = 1 + self.eta**2, s.lam - t.lam
        if self.quantity == "x0":
            return (phi2, phi3)[k - 1](rate * h)
        u, w = GAUSS
        return -rate * h * t.ratio * float((w * np.exp(-h * u)) @ u**k) / math.factorial(k)


def two_point(moments: Sequence[float], lams: Sequence[float], variant: str) -> Sequence[float]:
    """Weights of (q, q_1): m0 q + w (q - q_1) h / h_1, w the line's moment m1 or, as most releases have it, m0 / 2."""
    s, t, before = lams
    weight = (moments[1] if variant in ("exact", "heun") else moments[0] / 2) * (s - t) / (t - before)
    return moments[0] + weight, -weight


def three_point(moments: Sequence[float], lams: Sequence[float], variant: str) -> Sequence[float]:
    """Weights of (q, q_1, q_2): m0 q + m1 D1 + m2 D2, D1 and D2 the parabola's derivatives times h and h^2.

    D2 is twice the second divided difference. ``released`` leaves the 2 out: order 2. ``flipped`` has, besides, the
    constant 1/2 of m2 with the wrong sign: order 1. Both are in wide use.
    """
    s, t, before, earlier = lams
    r0, r1 = (t - before) / (s - t), (before - earlier) / (s - t)
    # a = (q - q_1) / r0, b = (q_1 - q_2) / r1; D1 = a + (a - b) r0 / (r0 + r1), D2 = 2 (a - b) / (r0 + r1)
    second = {"exact": 2 * moments[2], "released": moments[2], "flipped": moments[2] - 1}[variant]
    bend = (moments[1] * r0 + second) / (r0 + r1)
    a, b = moments[1] + bend, -bend
    return moments[0] + a / r0, -a / r0 + b / r1, -b / r1


@solvers.register(
    "dpmpp_2m",
    aliases=("dpm++2m", "dpmsolver++"),
    kind="ODE",
    order=2,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, algorithm 2",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s phi1(h) (x0 + (x0 - x0_before) h / (2 h_before))",
)
@dataclass(frozen=True)
class DPMpp2M(Exponential):
    """DPM-Solver++(2M): two predictions of x0, interpolated linearly in lam.

    With h = lam_s - lam_t and d = (x0 - x0_before) h / h_before:
    x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + w d), w = phi1(h) / 2 (``midpoint``) or the exact integral
    phi2(h) (``heun``). The first step has no earlier prediction and is Euler's, which keeps the global order.
    """

    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = False
    depth: ClassVar[int] = 2


@solvers.register(
    "dpmpp_3m",
    aliases=("dpm++3m",),
    kind="ODE",
    order=3,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, appendix B.2; the integral of x0's parabola in lam",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s (phi1 x0 + phi2 D1 + phi3 D2), D1 and D2 of three predictions",
    equals=("adams(order=3, quantity=x0, start=corrector)",),
    note="as released, with D2 halved and an Euler start, of order 2: variant=released, start=lower",
)
@dataclass(frozen=True)
class DPMpp3M(Exponential):
    """DPM-Solver++(3M): three predictions of x0, interpolated by a parabola in lam.

    ``released`` halves the second difference, and steps by two predictions as ``dpmpp_2m`` does: the released code.
    """

    variant: Literal["exact", "released"] = "exact"
    start: Start = "corrector"
    lower_order_final: bool = False
    depth: ClassVar[int] = 3

    @property
    def ceiling(self) -> float:
        return 2 if self.variant == "released" else super().ceiling


@solvers.register(
    "dpmpp_2m_sde",
    kind="SDE",
    order=2,
    stochastic=True,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, eq. 18 (SDE-DPM-Solver++ 2M)",
    formula="dpmpp_2m's with H = (1 + eta^2) h for h, and + sigma_s sqrt(1 - exp(-2 eta^2 h)) z",
    note="eta scales the noise's standard deviation; k-diffusion's eta is its square (solvers.convert_eta)",
    equals=(
        "dpmpp_2m_sde(variant=heun) = sa_solver(predictor_order=2, corrector_order=0)",
        "dpmpp_2m_sde(eta=0) = dpmpp_2m",
    ),
)
@dataclass(frozen=True)
class DPMpp2MSDE(Exponential):
    """SDE-DPM-Solver++(2M): dpmpp_2m on the reverse SDE, of order 2 in the covariance."""

    eta: NonNegative = 1.0
    s_noise: NonNegative = 1.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = False
    depth: ClassVar[int] = 2


@solvers.register(
    "dpmpp_3m_sde",
    kind="SDE",
    order=2,
    stochastic=True,
    native="x0",
    reference="Lu et al. 2022, arXiv:2211.01095, appendix B.2, on the reverse SDE",
    formula="dpmpp_3m's with H = (1 + eta^2) h for h, and + sigma_s sqrt(1 - exp(-2 eta^2 h)) z",
    note="of order 2 as measured; eta scales the noise's standard deviation, k-diffusion's is its square "
    "(solvers.convert_eta)",
)
@dataclass(frozen=True)
class DPMpp3MSDE(Exponential):
    """DPM-Solver++(3M) on the reverse SDE.

    ``released`` halves the second difference; ``flipped`` has a sign wrong besides, as one library ships it: order 1.
    """

    eta: NonNegative = 1.0
    s_noise: NonNegative = 1.0
    variant: Literal["exact", "released", "flipped"] = "exact"
    start: Literal["lower"] = "lower"
    lower_order_final: bool = False
    depth: ClassVar[int] = 3

    @property
    def nominal_order(self) -> float:
        return 2

    @property
    def ceiling(self) -> float:
        return 1 if self.variant == "flipped" else 2


@solvers.register(
    "dpm_solver_2m",
    kind="ODE/SDE",
    order=2,
    reference="Lu et al. 2022, arXiv:2211.01095, appendix B.1 (the multistep form of DPM-Solver-2, in eps)",
    formula="x_s / alpha_s = x / alpha_t - ratio_s ((e^h - 1) eps + w (eps - eps_1) h / h_1)",
    note="with eta > 0 the noisy end is stiff: at few steps from high noise take dpmpp_2m_sde",
)
@dataclass(frozen=True)
class DPMSolver2M(Exponential):
    """DPM-Solver-2 as a multistep method: two predictions of eps, interpolated linearly in lam."""

    eta: NonNegative = 0.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = False
    depth: ClassVar[int] = 2
    quantity: ClassVar[Quantity] = "eps"  # type: ignore[misc]


@solvers.register(
    "dpm_solver_3m",
    kind="ODE/SDE",
    order=3,
    reference="Lu et al. 2022, arXiv:2211.01095, appendix B.2, in eps",
    formula="x_s / alpha_s = x / alpha_t + m0 eps + m1 D1 + m2 D2, m_k = -int ratio (u/h)^k / k! d lam",
    equals=("adams(order=3, quantity=eps)", "dpm_solver_3m(start=lower) = deis(variant=logrho)"),
    note="as released, with D2 halved and an Euler start, of order 2: variant=released, start=lower; with eta > 0 the "
    "noisy end is stiff: at few steps from high noise take dpmpp_3m_sde",
)
@dataclass(frozen=True)
class DPMSolver3M(Exponential):
    """DPM-Solver-3 as a multistep method: three predictions of eps, interpolated by a parabola in lam."""

    eta: NonNegative = 0.0
    variant: Literal["exact", "released"] = "exact"
    start: Start = "corrector"
    lower_order_final: bool = False
    depth: ClassVar[int] = 3
    quantity: ClassVar[Quantity] = "eps"  # type: ignore[misc]

    @property
    def ceiling(self) -> float:
        return 2 if self.variant == "released" or self.stochastic else super().ceiling
