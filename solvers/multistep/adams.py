"""Adams-Bashforth methods for the probability-flow ODE. They differ in quantity, coordinate and start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ..registry.options import named
from ..registry.ranges import Range
from ..types.model_output import Quantity
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Step, solvers
from .base import Coefficients, Coordinate, Memory, Multistep, Start, adams


class Polynomial(Multistep):
    """Adams-Bashforth: the exact integral of the polynomial in ``coordinate`` through ``depth`` values of ``quantity``.

    The values are those of the last ``depth`` predictions.
    """

    depth: int = 4
    coordinate: Coordinate = "ratio"
    quantity: Quantity = "eps"

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Coefficients:
        return adams(problem, s, t, nodes, self.quantity, self.coordinate)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Memory, noise: Noise | None) -> Step:
        started = len(carry.past) >= (self.depth - 1 if self.start == "runge_kutta" else 1)
        if (self.quantity, self.coordinate) == ("eps", "ratio") and started:
            return self.step(problem, x, t, s, carry, noise)
        return super().to_data(problem, x, t, s, carry, noise)


@solvers.register(
    "adams",
    aliases=("adams_bashforth",),
    kind="ODE",
    order=3,
    reference="Hairer, Norsett and Wanner 1993, section III.5, with the exponential kernel of each quantity",
    formula="x_s / scale_s = x / scale_t + sum_j q_j int l_j dm",
    native="any",
)
@dataclass(frozen=True)
class Adams(Polynomial):
    """Adams-Bashforth with free choice of the interpolated quantity, the coordinate and the order.

    With (quantity, coordinate), (eps, ratio) is ``lms``, (eps, lam) is ``deis(variant=logrho)``, and (x0, lam) at order
    3 is ``dpmpp_3m``. The velocity eps - x0 and the coordinate ``flow``, r / (1 + r) with r = sigma / alpha, belong to
    rectified flow; v and ``angle``, atan r, to the cosine path. (v, lam) is the Rosenbrock-type method: it solves the
    linear part of N(0, 1) data exactly.
    """

    depth: Annotated[int, Range(1, 6)] = named("order", 3)
    quantity: Quantity = "x0"
    coordinate: Coordinate = "lam"
    start: Start = "corrector"
    lower_order_final: bool = False


@solvers.register(
    "lms",
    aliases=("linear_multistep",),
    kind="ODE",
    order=2,
    reference="Liu et al. 2022, arXiv:2202.09778, eq. 9, with uneven steps; Hairer, Norsett and Wanner 1993, III.5",
    formula="x_s / alpha_s = x / alpha_t + sum_j eps_j int l_j(ratio) d ratio",
    equals=("ipndm_v", "deis(variant=rhoab, order=4)", "adams(order=4, quantity=eps, coordinate=ratio, start=lower)"),
)
@dataclass(frozen=True)
class LMS(Polynomial):
    """Linear multistep: eps interpolated in sigma / alpha, for uneven steps."""

    depth: Annotated[int, Range(1, 6)] = named("order", 4)
    start: Start = "lower"
    lower_order_final: bool = False


@solvers.register(
    "ipndm_v",
    kind="ODE",
    order=2,
    reference="Zhang and Chen 2023, arXiv:2204.13902, with the weights of uneven steps; Hairer et al. 1993, III.5",
    formula="x_s / alpha_s = x / alpha_t + sum_j eps_j int l_j(ratio) d ratio",
    equals=("lms",),
)
@dataclass(frozen=True)
class IPNDMV(LMS):
    """iPNDM with the Adams-Bashforth weights of uneven steps: a second name of ``lms``."""


@solvers.register(
    "deis",
    kind="ODE",
    order=2,
    reference="Zhang and Chen 2023, arXiv:2204.13902, eq. 14-15 (tAB) and section 4 (rhoAB)",
    formula="x_s / alpha_s = x / alpha_t + sum_j eps_j int l_j d ratio, l_j polynomials in t, ratio or lam",
    equals=(
        "deis(variant=logrho, order=2) = dpm_solver_2m(variant=heun)",
        "deis(variant=rhoab, order=4) = lms",
        "deis(order=1) = ddim",
    ),
)
@dataclass(frozen=True)
class DEIS(Polynomial):
    """DEIS: eps interpolated in t (``tab``), in sigma / alpha (``rhoab``) or in its logarithm (``logrho``).

    ``order`` is the number of predictions, so the paper's tAB3 is order=4.
    """

    depth: Annotated[int, Range(1, 6)] = named("order", 3)
    variant: Literal["tab", "rhoab", "logrho"] = "tab"
    start: Start = "lower"
    lower_order_final: bool = False

    @property
    def coordinate(self) -> Coordinate:  # type: ignore[override]
        coordinates: dict[str, Coordinate] = {"tab": "t", "rhoab": "ratio", "logrho": "lam"}
        return coordinates[self.variant]


@solvers.register(
    "res_2m",
    aliases=("res_multistep",),
    kind="ODE",
    order=2,
    native="x0",
    reference="Zhang et al. 2023, arXiv:2308.02157, section 3.3 and appendix",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s (phi1(h) x0 + phi2(h) (x0 - x0_before) h / h_before)",
    equals=(
        "dpmpp_2m(variant=heun)",
        "adams(order=2)",
        "sa_solver(predictor_order=2, corrector_order=0, eta=0)",
    ),
)
@dataclass(frozen=True)
class RES2M(Multistep):
    """The refined exponential solver's multistep method: the exact integral of the line through two x0 in lam."""

    lower_order_final: bool = False
    depth: ClassVar[int] = 2


# Adams-Bashforth weights for equal steps, newest first
FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class FixedWeights(Multistep):
    """Fixed Adams-Bashforth weights, those of equal steps: order 2 unless the ratios are equally spaced."""

    depth: int = 4
    quantity: Quantity = "eps"

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        return Coefficients(1.0, [(s.ratio - past[0].ratio) * weight for weight in FIXED[len(past) - 1]])


@solvers.register(
    "gradient_estimation",
    kind="ODE",
    order=1,
    reference="Permenter and Yuan 2024, arXiv:2306.04848, the gradient-estimation sampler",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) (gamma eps + (1 - gamma) eps_before)",
    equals=("gradient_estimation(gamma=1.5) = ipndm(order=2)", "gradient_estimation(gamma=1) = ddim"),
    note="order 1; gamma=1.5 gives the second-order weights of even steps",
)
@dataclass(frozen=True)
class GradientEstimation(Multistep):
    """DDIM with eps extrapolated from the last two predictions: gamma eps + (1 - gamma) eps_before.

    The weights do not depend on the steps. Raises InputError for a gamma below 1 or infinite.
    """

    gamma: Annotated[float, Range(1, ends="[)")] = 2.0
    depth: ClassVar[int] = 2
    quantity: ClassVar[Quantity] = "eps"  # type: ignore[misc]

    @property
    def nominal_order(self) -> float:
        return 2 if self.gamma == 1.5 else 1

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        weights = (self.gamma, 1 - self.gamma) if len(past) > 1 else (1.0,)
        return Coefficients(1.0, [(s.ratio - past[0].ratio) * weight for weight in weights])


@solvers.register(
    "ipndm",
    kind="ODE",
    order=2,
    reference="Zhang and Chen 2023, arXiv:2204.13902, appendix H.2",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24",
    note="order 4 where the ratios are equally spaced, otherwise 2",
)
@dataclass(frozen=True)
class IPNDM(FixedWeights):
    """Improved PNDM: fixed Adams-Bashforth weights. The first steps use the weights of lower orders."""

    depth: Annotated[int, Range(1, 4)] = named("order", 4)
    lower_order_final: bool = False


@solvers.register(
    "plms",
    kind="ODE",
    order=2,
    reference="Liu et al. 2022, arXiv:2202.09778, eq. 12 (weights); Rombach et al. 2022, arXiv:2112.10752 (start)",
    formula="as ipndm; the first step uses the mean of eps at its two ends",
    note="order 2 unless the ratios are equally spaced; one evaluation more than steps",
)
@dataclass(frozen=True)
class PLMS(FixedWeights):
    """Pseudo linear multistep: fixed Adams-Bashforth weights after one step of Heun's method."""

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Memory, noise: Noise | None) -> Step:
        if carry.past:
            return super().step(problem, x, t, s, carry, noise)
        first = problem.predict(x, t).eps
        second = problem.predict(moved(x, t, s, ((1.0, first),)), s).eps
        past = ((t, first),)
        return Step(moved(x, t, s, ((0.5, first), (0.5, second))), Memory(past, (), carry.remaining - 1))


@solvers.register(
    "pndm",
    kind="ODE",
    order=2,
    reference="Liu et al. 2022, arXiv:2202.09778, eq. 11-13 and algorithm 2",
    formula="as ipndm; the first three steps are pseudo Runge-Kutta steps of four evaluations",
    note="order 2 unless the ratios are equally spaced; nine evaluations more than steps",
)
@dataclass(frozen=True)
class PNDM(FixedWeights):
    """PNDM: fixed Adams-Bashforth weights after three steps of a four-stage Runge-Kutta method.

    The middle stages lie at the middle of the step in t, as published.
    """

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Memory, noise: Noise | None) -> Step:
        if len(carry.past) >= 3:
            return super().step(problem, x, t, s, carry, noise)
        middle = problem.node(0.5 * (t.t + s.t))
        e1 = problem.predict(x, t).eps
        e2 = problem.predict(moved(x, t, middle, ((1.0, e1),)), middle).eps
        e3 = problem.predict(moved(x, t, middle, ((1.0, e2),)), middle).eps
        e4 = problem.predict(moved(x, t, s, ((1.0, e3),)), s).eps
        x = moved(x, t, s, ((1 / 6, e1), (1 / 3, e2), (1 / 3, e3), (1 / 6, e4)))
        return Step(x, Memory(((t, e1), *carry.past), (), carry.remaining - 1))


def moved(x: Tensor, t: Node, s: Node, slopes: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x (B, *) moved from t to s along the weighted slopes in sigma / alpha: PNDM's transfer, eq. 11."""
    x = (s.alpha / t.alpha) * x
    for weight, eps in slopes:
        x = x + (s.alpha * (s.ratio - t.ratio) * weight) * eps
    return x
