"""ER-SDE: exponential multistep methods of reverse SDEs whose noise is a function of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ..one_step.coefficients import GAUSS, Array, lagrange
from ..registry.options import named
from ..registry.ranges import NonNegative, Range
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Coefficients, Multistep

NoiseScale = Literal["ode", "sde", "power_1_5", "power_2_5", "logarithmic", "exponential"]


def _logarithmic(r: Array) -> tuple[Array, Array]:
    inner = np.log1p(100 * r**1.5)
    return r**0.9 * inner / math.log(10), 0.9 / r + 150 * r**0.5 / ((1 + 100 * r**1.5) * inner)


def _exponential(r: Array) -> tuple[Array, Array]:
    growth = np.exp(r**0.3)
    return r * (growth + 10), 1 / r + 0.3 * r**-0.7 * growth / (growth + 10)


def _power(p: float) -> Callable[[Array], tuple[Array, Array]]:
    return lambda r: (r**p, p / r)


# each noise-scale function returns phi and d log phi / d ratio; phi / ratio must not decrease
NOISE_SCALES: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "ode": _power(1.0),
    "sde": _power(2.0),
    "power_1_5": _power(1.5),
    "power_2_5": _power(2.5),
    "logarithmic": _logarithmic,
    "exponential": _exponential,
}


@solvers.register(
    "er_sde",
    kind="SDE",
    order=2,
    stochastic=True,
    native="x0",
    reference="Cui et al. 2023, arXiv:2309.06169, propositions 4-6 and section 3.3",
    formula="x_s/alpha_s = k x/alpha_t + phi_s sum_j x0_j int l_j phi'/phi^2 d ratio + sqrt(r_s^2 - (k r_t)^2) z, "
    "k = phi_s / phi_t",
    equals=("er_sde(order=1, noise_scale=sde) = ddpm", "er_sde(order=1, noise_scale=ode) = ddim"),
    note="with order=2 and order=3, of order 2 in the covariance",
)
@dataclass(frozen=True)
class ERSDE(Multistep):
    """ER-SDE: x0 interpolated in ratio = sigma / alpha, with noise given by phi(ratio).

    phi = ratio is the ODE (``ode``) and phi = ratio^2 the reverse SDE (``sde``). The default,
    ratio (exp(ratio^0.3) + 10), lies between them. The integrals are exact here; the paper approximates them by sums.
    At order 3, ``published`` uses the last difference quotient as the first derivative instead of the parabola's slope.
    """

    depth: Annotated[int, Range(1, 3)] = named("order", 3)
    noise_scale: NoiseScale = "exponential"
    variant: Literal["exact", "published"] = "exact"
    s_noise: NonNegative = 1.0
    lower_order_final: bool = False

    @property
    def stochastic(self) -> bool:
        return self.noise_scale != "ode"

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        t = past[0]
        phi = NOISE_SCALES[self.noise_scale]
        h = s.lam - t.lam
        r = np.exp(-(t.lam + h * GAUSS[0]))
        ends, _ = phi(np.array([s.ratio, t.ratio]))
        values, slopes = phi(r)
        keep = float(ends[0] / ends[1])
        measure = GAUSS[1] * h * r * float(ends[0]) * slopes / values  # d ratio = -ratio d lam
        at = [node.ratio for node in past]
        weights = lagrange(at, r, measure)
        if self.variant == "published" and len(past) == 3:
            weights = self._published(measure, r, at)
        variance = (s.ratio - keep * t.ratio) * (s.ratio + keep * t.ratio)
        return Coefficients(keep, weights, self.s_noise * math.sqrt(max(0.0, variance)) if self.stochastic else 0.0)

    def _published(self, measure: Array, r: Array, at: Sequence[float]) -> list[float]:
        """The weights that integrate x0 + D1 (r - r_t) + D2 (r - r_t)^2 / 2, with D1 the last difference quotient."""
        whole, first, second = (float(measure @ (r - at[0]) ** k) for k in range(3))
        bend = second / (at[0] - at[2])  # D2 / 2 = (D1 - D1 before) / (r_t - r_before_before)
        a, b = (first + bend) / (at[0] - at[1]), bend / (at[1] - at[2])
        return [whole + a, -a - b, b]
