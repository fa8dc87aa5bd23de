"""Exponential Runge-Kutta methods that satisfy the stiff order conditions."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..registry.ranges import Share
from ..types.solver import solvers
from .coefficients import phi1, phi2
from .exponential_runge_kutta import ExponentialRungeKutta, Scheme, Weights, two_stages


@solvers.register(
    "res_2s",
    kind="ODE",
    order=2,
    evaluations=2,
    native="x0",
    reference="Zhang et al. 2023, arXiv:2308.02157, section 4; Hochbruck and Ostermann 2005, eq. 5.6",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + phi2(h) (x0_2 - x0) / c2)",
    equals=("dpmpp_2s(variant=taylor)",),
)
@dataclass(frozen=True)
class RES2S(ExponentialRungeKutta):
    """Refined exponential solver with two stages: integrates the line through two predictions of x0 in lam exactly.

    x_s / alpha_s = e^-h x / alpha_t + phi1(h) x0 + phi2(h) (x0_2 - x0) / c2. Raises InputError for c2 outside (0, 1].
    """

    c2: Share = 0.5

    def scheme(self) -> Scheme:
        return two_stages("x0", self.c2, "taylor")


@solvers.register(
    "res_3s",
    kind="ODE",
    order=3,
    evaluations=3,
    native="x0",
    reference="Zhang et al. 2023, arXiv:2308.02157, appendix; Hochbruck and Ostermann 2005, eq. 5.8-5.9",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s (phi1 x0 + phi2 (gamma (x0_2 - x0) + x0_3 - x0) / (gamma c2 + c3))",
    note="gamma = (3 c3^2 - 2 c3) / (c2 (2 - 3 c2)); with c3^3 in place of c3^2, as sometimes printed, the order is 2",
)
@dataclass(frozen=True)
class RES3S(ExponentialRungeKutta):
    """Refined exponential solver with three stages, which satisfies the stiff conditions of order 3.

    With phi_j(c) = phi_j(c h), stage 2 adds phi1(c2) x0 and stage 3 adds phi1(c3) x0 + a (x0_2 - x0), where
    a = gamma phi2(c2) + (c3 / c2) phi2(c3). The formula gives the end of the step; gamma satisfies
    2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2). Raises InputError for c2 or c3 outside (0, 1], for c2 = 2/3, or if
    gamma c2 + c3 = 0.
    """

    c2: Share = 0.5
    c3: Share = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(2 - 3 * self.c2) < 1e-6:
            raise InputError("res_3s: c2 must not be 2/3")
        if abs(self._gamma() * self.c2 + self.c3) < 1e-6:
            raise InputError(f"res_3s: no weights of order 3 exist for c2={self.c2:g} and c3={self.c3:g}")

    def _gamma(self) -> float:
        return (3 * self.c3**2 - 2 * self.c3) / (self.c2 * (2 - 3 * self.c2))

    def scheme(self) -> Scheme:
        c2, c3, gamma = self.c2, self.c3, self._gamma()

        def rows(big: float) -> tuple[Weights, ...]:
            a = gamma * phi2(c2 * big) + c3 / c2 * phi2(c3 * big)
            b = phi2(big) / (gamma * c2 + c3)
            return (phi1(c2 * big),), (phi1(c3 * big) - a, a), (phi1(big) - (gamma + 1) * b, gamma * b, b)

        return Scheme("x0", (c2, c3), rows)
