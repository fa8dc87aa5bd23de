"""DPM-Solver's multistep methods: they interpolate x0 (++) or eps in lam and solve the linear part exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ..one_step.coefficients import GAUSS, phi2, phi3
from ..registry.ranges import NonNegative
from ..types.model_output import Quantity
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Coefficients, Multistep, Start, adams


class Moments(NamedTuple):
    """The integrals of 1, u and u^2 / 2 over a step, with u = (lam - lam_t) / h and the method's exponential weight."""

    constant: float
    linear: float
    quadratic: float


class Exponential(Multistep):
    """Exponential multistep method: x_s / alpha_s = keep x / alpha_t + m0 q + terms of differences of q + noise.

    In x0 this is DPM-Solver++: keep = (sigma_s / sigma_t) (alpha_t / alpha_s) and m0 = -expm1(-h), so that
    x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) D. ``two_point`` and ``three_point`` compute D from the predictions.
    On the SDE of eta, (1 + eta^2) h replaces h, and keep has the further factor exp(-eta^2 h).
    """

    eta: NonNegative = 0.0
    s_noise: NonNegative = 1.0
    variant: str = "exact"

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        keep, moments, noise = (self._data if self.quantity == "x0" else self._noise)(past[0], s)
        steps = [after.lam - before.lam for after, before in pairwise((s, *past))]  # h, h_before, h_earlier
        rule = (lambda *_: (moments.constant,), two_point, three_point)[len(past) - 1]
        return Coefficients(keep, rule(moments, steps, self.variant), self.s_noise * noise)

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Coefficients:
        return adams(problem, s, t, nodes, self.quantity, "lam", self.eta)

    def _data(self, t: Node, s: Node) -> tuple[float, Moments, float]:
        """keep, moments and noise in x0: arXiv:2211.01095, algorithm 2, and with eta = 1 its eq. 18, in x / alpha."""
        h, extra = s.lam - t.lam, self.eta**2
        keep = s.ratio / t.ratio * math.exp(-extra * h)  # sigma_s / sigma_t, once x / alpha is undone
        grown = (1 + extra) * h
        noise = s.ratio * math.sqrt(max(0.0, -math.expm1(-2 * extra * h)))
        return keep, Moments(-math.expm1(-grown), phi2(grown), phi3(grown)), noise

    def _noise(self, t: Node, s: Node) -> tuple[float, Moments, float]:
        """keep, moments and noise in eps: arXiv:2206.00927, eq. 3.4, with the terms in 1 + eta^2 on the SDE."""
        h, extra = s.lam - t.lam, self.eta**2
        constant = -(1 + extra) * s.ratio * math.expm1(h)
        points, weights = GAUSS
        linear, quadratic = (
            -(1 + extra) * h * t.ratio * float((weights * np.exp(-h * points)) @ points**k) / k for k in (1, 2)
        )
        noise = self.eta * math.sqrt(max(0.0, (t.ratio - s.ratio) * (t.ratio + s.ratio)))
        return 1.0, Moments(constant, linear, quadratic), noise


def two_point(moments: Moments, steps: Sequence[float], variant: str) -> Sequence[float]:
    """Weights of (q, q_before): m0 q + m1 (q - q_before) / r, r = h_before / h (``heun``, ``exact``).

    So does ``taylor``. ``midpoint``, which most releases use, replaces m1 by m0 / 2. The step is then m0 D with
    D = (1 + 1 / (2 r)) q - 1 / (2 r) q_before, the D of arXiv:2211.01095, algorithm 2.
    """
    h, h_before = steps
    one_over_r = h / h_before
    slope = moments.linear if variant in ("heun", "exact", "taylor") else moments.constant / 2
    return moments.constant + slope * one_over_r, -slope * one_over_r


def three_point(moments: Moments, steps: Sequence[float], variant: str) -> Sequence[float]:
    """Weights of (q, q_1, q_2): m0 q + m1 D1 + m2 D2, D1 and D2 the parabola's derivatives times h and h^2.

    D2 is twice the second divided difference. ``released`` and ``taylor`` omit the factor 2: order 2. ``flipped`` also
    omits it and has the constant 1/2 of m2 with the wrong sign: order 1. Both are in wide use.
    """
    h, h_before, h_earlier = steps
    r0, r1 = h_before / h, h_earlier / h
    # a = (q - q_1) / r0, b = (q_1 - q_2) / r1; D1 = a + (a - b) r0 / (r0 + r1), D2 = 2 (a - b) / (r0 + r1)
    m2 = moments.quadratic
    second = {"exact": 2 * m2, "released": m2, "taylor": m2, "flipped": m2 - 1}[variant]
    bend = (moments.linear * r0 + second) / (r0 + r1)
    a, b = moments.linear + bend, -bend
    return moments.constant + a / r0, -a / r0 + b / r1, -b / r1


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
    x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + w d), where w is phi1(h) / 2 (``midpoint``) or the exact
    integral phi2(h) (``heun``). The first step has no earlier prediction and is Euler's; the global order stays 2.
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
    note="variant=released, start=lower is the released code, with D2 halved and an Euler start: order 2",
)
@dataclass(frozen=True)
class DPMpp3M(Exponential):
    """DPM-Solver++(3M): three predictions of x0, interpolated by a parabola in lam.

    ``released`` is the released code: it halves the second difference, and its second step, which has only two
    predictions, is that of ``dpmpp_2m``.
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
    """SDE-DPM-Solver++(2M): ``dpmpp_2m`` on the reverse SDE, of order 2 in the covariance."""

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
    note="measured order 2; eta scales the noise's standard deviation; k-diffusion's eta is its square "
    "(solvers.convert_eta); variant=taylor is k-diffusion's method",
)
@dataclass(frozen=True)
class DPMpp3MSDE(Exponential):
    """DPM-Solver++(3M) on the reverse SDE.

    ``released`` halves the second difference. ``flipped``, as one library ships it, also has one wrong sign: order 1.
    Their second step, which has two predictions, is that of ``dpmpp_2m_sde``. ``taylor`` is k-diffusion's method:
    ``released``, but the second step integrates the line through its predictions exactly.
    """

    eta: NonNegative = 1.0
    s_noise: NonNegative = 1.0
    variant: Literal["exact", "released", "taylor", "flipped"] = "exact"
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
    note="with eta > 0 the noisy end is stiff: for few steps from high noise use dpmpp_2m_sde",
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
    note="variant=released, start=lower is the released code, with D2 halved and an Euler start: order 2; with eta > 0 "
    "the noisy end is stiff: for few steps from high noise use dpmpp_3m_sde",
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
