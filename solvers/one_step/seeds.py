"""Exponential Runge-Kutta methods for the reverse SDE; the stages and the end of a step use one Brownian path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..registry.ranges import Inside, NonNegative, Share
from ..types.solver import solvers
from .exponential_runge_kutta import (
    ExponentialRungeKutta,
    Kind,
    Scheme,
    Variant,
    check_ordered,
    one_stage,
    three_stages,
    two_stages,
)


@solvers.register(
    "dpmpp_sde",
    aliases=("dpm++sde",),
    kind="SDE",
    order=2,
    stochastic=True,
    evaluations=2,
    native="x0",
    reference="Crowson 2022, k-diffusion, DPM++ SDE; the SDE of Lu et al. 2022, arXiv:2211.01095, section 5",
    formula="dpmpp_2s with H = (1 + eta^2) h in place of h, and the stage and the end on one Brownian path",
    equals=("seeds_2",),
    note="noise=independent draws independent noise for the stage and the end, as k-diffusion does without a Brownian "
    "tree: order 1",
)
@dataclass(frozen=True)
class DPMppSDE(ExponentialRungeKutta):
    """DPM++ SDE: DPM-Solver++(2S) on the reverse SDE, with a stage at the fraction r of the step in lam.

    x_s / alpha_s = e^-H x / alpha_t + phi1(H) x0 + w (x0_1 - x0) / r + ratio_s n with H = (1 + eta^2) h and
    w = phi1(H) / 2 (``dpmsolver``) or phi2(H) (``taylor``). The noise n has variance 1 - e^(-2 eta^2 h) and the same
    Brownian path as the stage's noise. eta = 0 is ``dpmpp_2s``. Raises InputError for r outside (0, 1), or eta or
    s_noise below 0.
    """

    eta: NonNegative = 1.0
    r: Inside = 0.5
    s_noise: NonNegative = 1.0
    variant: Variant = "dpmsolver"
    noise: Literal["joint", "independent"] = "joint"

    @property
    def order(self) -> float:
        return 1.0 if self.noise == "independent" and self.eta > 0 else 2.0

    def scheme(self) -> Scheme:
        joint = self.noise == "joint"
        return two_stages("x0", self.r, self.variant, eta=self.eta, s_noise=self.s_noise, joint=joint)


@dataclass(frozen=True)
class _SEEDS(ExponentialRungeKutta):
    """A method for the reverse SDE that interpolates x0 or eps in lam, with joint noise; eta = 0 is the ODE."""

    quantity: Kind = "x0"
    eta: NonNegative = 1.0
    s_noise: NonNegative = 1.0


@solvers.register(
    "seeds_1",
    kind="SDE",
    order=1,
    stochastic=True,
    reference="Gonzalez et al. 2023, arXiv:2305.14267, SEEDS-1",
    native="x0",
    formula="x_s / alpha_s = e^(-2h) x / alpha_t + phi1(2h) x0 + ratio_s sqrt(1 - e^(-2h)) z",
    equals=("ddpm",),
    note="quantity=eps uses eps instead, as in the paper's first form; it needs far smaller steps at high noise",
)
@dataclass(frozen=True)
class SEEDS1(_SEEDS):
    """SEEDS-1: the exponential Euler method for the reverse SDE, with x0 (or eps) constant over the step."""

    def scheme(self) -> Scheme:
        return one_stage(self.quantity, eta=self.eta, s_noise=self.s_noise)


@solvers.register(
    "seeds_2",
    kind="SDE",
    order=2,
    stochastic=True,
    evaluations=2,
    reference="Gonzalez et al. 2023, arXiv:2305.14267, SEEDS-2",
    native="x0",
    formula="x_s / alpha_s = e^(-2h) x / alpha_t + phi1(2h) x0_m + noise, x0_m at the middle of the step in lam",
    note="quantity=eps uses eps instead, as in the paper's first form; it needs far smaller steps at high noise",
)
@dataclass(frozen=True)
class SEEDS2(_SEEDS):
    """SEEDS-2: a stage at the fraction r of the step in lam, on the same Brownian path as the end of the step.

    Raises InputError for r outside (0, 1].
    """

    r: Share = 0.5

    def scheme(self) -> Scheme:
        return two_stages(self.quantity, self.r, eta=self.eta, s_noise=self.s_noise)


@solvers.register(
    "seeds_3",
    kind="SDE",
    order=2,
    stochastic=True,
    evaluations=3,
    reference="Gonzalez et al. 2023, arXiv:2305.14267, SEEDS-3",
    native="x0",
    formula="x_s / alpha_s = e^(-2h) x / alpha_t + phi1(2h) x0 + phi2(2h) (x0_2 - x0) / r2 + noise",
    note="despite its three stages, the order of the covariance is 2; without noise (eta=0) the order is 3",
)
@dataclass(frozen=True)
class SEEDS3(_SEEDS):
    """SEEDS-3: stages at the fractions r1 and r2 of the step in lam, on the same Brownian path as the end of the step.

    Raises InputError unless 0 < r1 < r2 <= 1.
    """

    r1: Share = 1 / 3
    r2: Share = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered(self, "r1", "r2")

    def scheme(self) -> Scheme:
        return three_stages(self.quantity, self.r1, self.r2, eta=self.eta, s_noise=self.s_noise)
