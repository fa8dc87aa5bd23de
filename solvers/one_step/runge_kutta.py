"""Runge-Kutta methods in coordinates where every Gaussian path has the same ODE.

Let c be a scale of the state, y = x / c and m = sigma / c. For c = alpha the ODE is dy / dm = eps. For
c = alpha + sigma it is dy / dm = eps - x0, the velocity of the straight path, since y = (1 - m) x0 + m eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..registry.ranges import Share
from ..types.model_output import Quantity, quantity
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit method: nodes c, stage weights a (row i has i entries), weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
RK4 = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

# name: (order, tableau); Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I, chapter II.1,
# unless a paper is named
TABLEAUX: dict[str, tuple[int, Tableau]] = {
    "euler": (1, EULER),
    "midpoint": (2, Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))),
    "heun2": (2, HEUN),
    "ralston2": (2, Tableau((0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))),
    "kutta3": (3, Tableau((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))),
    "heun3": (3, Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4))),
    # Ralston 1962, Math. Comp. 16, 431
    "ralston3": (3, Tableau((0.0, 0.5, 0.75), ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9))),
    # Shu and Osher 1988, J. Comput. Phys. 77, 439
    "ssprk3": (3, Tableau((0.0, 1.0, 0.5), ((), (1.0,), (0.25, 0.25)), (1 / 6, 1 / 6, 2 / 3))),
    # van der Houwen 1972, Numer. Math. 20, 149
    "van_der_houwen3": (3, Tableau((0.0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4))),
    "rk4": (4, RK4),
    "three_eighths": (
        4,
        Tableau(
            (0.0, 1 / 3, 2 / 3, 1.0),
            ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
            (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        ),
    ),
}


class ExplicitRungeKutta(Solver):
    """An explicit Runge-Kutta method; a subclass provides the tableau for an interval.

    With h = ratio_s - ratio_t and stages eps_i at ratio_t + c_i h:
    x_s / alpha_s = x / alpha_t + h sum_i b_i eps_i. With ``quantity="velocity"``, eps - x0 replaces eps and
    alpha + sigma replaces alpha.
    """

    quantity: Quantity = "eps"

    def tableau_of(self, t: Node, s: Node) -> Tableau:
        """The tableau of the step from t to s."""
        raise NotImplementedError

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return Step(self.advance(problem, x, t, s, problem.predict(x, t)))

    def advance(
        self, problem: Problem, x: Tensor, t: Node, s: Node, first: Prediction, tableau: Tableau | None = None
    ) -> Tensor:
        """The state (B, *) at s from x (B, *) at t and the prediction at t, for sigma_s > 0."""
        straight = self.quantity == "velocity"

        def scale(node: Node) -> float:
            return node.alpha + node.sigma if straight else node.alpha

        def move(node: Node, weights: tuple[float, ...]) -> Tensor:
            y = (scale(node) / scale(t)) * x
            for weight, slope in zip(weights, slopes, strict=True):
                if weight:
                    y = y + (scale(node) * h * weight) * slope
            return y

        tableau, start = tableau or self.tableau_of(t, s), t.sigma / scale(t)
        h = s.sigma / scale(s) - start
        slopes = [quantity(first, t, self.quantity)]
        for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
            m = start + c * h
            node = s if c == 1 else problem.node_of_lam(-math.log(m / (1 - m) if straight else m))
            slopes.append(quantity(problem.predict(move(node, row), node), node, self.quantity))
        return move(s, tableau.b)


class RungeKutta(ExplicitRungeKutta):
    """An explicit Runge-Kutta method with one tableau for every interval; a subclass provides it."""

    tableau: ClassVar[Tableau]

    def tableau_of(self, t: Node, s: Node) -> Tableau:
        return self.tableau


@solvers.register(
    "euler",
    kind="ODE",
    order=1,
    reference="Karras et al. 2022, arXiv:2206.00364, section 3",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) eps",
    equals=("ddim", "dpm_solver_1"),
)
@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method on the probability-flow ODE; equal to ``ddim`` at eta = 0."""

    tableau: ClassVar[Tableau] = EULER


@solvers.register(
    "heun",
    kind="ODE",
    order=2,
    evaluations=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 1",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) (eps + eps') / 2, eps' at Euler's x_s",
    equals=("rho_rk",),
    note="quantity=velocity averages eps - x0 over sigma / (alpha + sigma), as flow-matching code does",
)
@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method: EDM's deterministic sampler or, with ``quantity="velocity"``, Heun's method of flow matching.

    The latter, with v = eps - x0, c = alpha + sigma and v' at Euler's x_s, is
    x_s / c_s = x / c_t + (sigma_s / c_s - sigma_t / c_t) (v + v') / 2. On the straight path c = 1, and this is Heun's
    method in time.
    """

    quantity: Literal["eps", "velocity"] = "eps"

    tableau: ClassVar[Tableau] = HEUN


@solvers.register(
    "heunpp2",
    aliases=("heun++2",),
    kind="ODE",
    order=1,
    evaluations=3,
    reference="ComfyUI's sampler of the same name, after Carzit, sd-webui-samplers-scheduler",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) ((1 - w_s - w_n) eps + w_s eps_s + w_n eps_n), n the "
    "node after s, w = ratio / (3 ratio_max)",
    note="of order 1: the weights do not depend on the nodes' distances; the last but one step has two evaluations",
)
@dataclass(frozen=True)
class HeunPP2(ExplicitRungeKutta):
    """Heun++: averages eps at t, at the next node s and at the node n after it, with weights that grow with the noise.

    Euler leads from t to s and from there to n. With w(r) = r / (3 r_max), r_max the grid's largest ratio, the weights
    are w(r_s), w(r_n) and the rest for eps at t. The last but one step uses t and s with w(r) = r / (2 r_max), the last
    one is Euler's.
    """

    @property
    def plans_grid(self) -> bool:
        return True

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return 0, tuple(node.ratio for node in nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        index, ratios = carry
        follow, largest = ratios[:-1][index + 1 : index + 3], max(ratios)
        shares = [r / ((1 + len(follow)) * largest) for r in follow]
        beyond = [(r - t.ratio) / (s.ratio - t.ratio) for r in follow]
        rows = ((), *((1.0, *(b - a for a, b in pairwise(beyond[:k]))) for k in range(1, len(follow) + 1)))
        tableau = Tableau((0.0, *beyond), rows, (1 - sum(shares), *shares))
        return Step(self.advance(problem, x, t, s, problem.predict(x, t), tableau), (index + 1, ratios))


@solvers.register(
    "rk4",
    kind="ODE",
    order=4,
    evaluations=4,
    reference="Kutta 1901; Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I, chapter II.1",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) (eps_1 + 2 eps_2 + 2 eps_3 + eps_4) / 6",
    equals=("rho_rk(tableau=rk4)",),
)
@dataclass(frozen=True)
class ClassicalRK4(RungeKutta):
    """The classical Runge-Kutta method of order 4."""

    tableau: ClassVar[Tableau] = RK4


@solvers.register(
    "rho_rk",
    aliases=("rhork",),
    kind="ODE",
    order=2,
    evaluations=2,
    reference="Zhang and Chen 2023, arXiv:2204.13902, section 3.3 and appendix; the tableaux' own papers",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) sum_i b_i eps_i",
    equals=("heun",),
)
@dataclass(frozen=True)
class RhoRK(ExplicitRungeKutta):
    """DEIS' rho-RK family: a Runge-Kutta method in ratio = sigma / alpha, with a tableau selected by name.

    The tableau determines the order and the evaluations per step.
    """

    tableau: Literal[
        "euler",
        "midpoint",
        "heun2",
        "ralston2",
        "kutta3",
        "heun3",
        "ralston3",
        "ssprk3",
        "van_der_houwen3",
        "rk4",
        "three_eighths",
    ] = "heun2"

    @property
    def order(self) -> float:
        return float(TABLEAUX[self.tableau][0])

    @property
    def evaluations(self) -> int:
        return len(TABLEAUX[self.tableau][1].b)

    def tableau_of(self, t: Node, s: Node) -> Tableau:
        return TABLEAUX[self.tableau][1]


@solvers.register(
    "dpm_2",
    aliases=("dpm2",),
    kind="ODE",
    order=2,
    evaluations=2,
    reference="Crowson 2022, k-diffusion, sample_dpm_2, after Karras et al. 2022, arXiv:2206.00364, algorithm 2",
    formula="x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) eps_m, eps_m by Euler at sqrt(ratio_t ratio_s)",
    equals=("dpm_solver_2",),
)
@dataclass(frozen=True)
class DPM2(ExplicitRungeKutta):
    """The midpoint method in log ratio: Euler to ratio_m = ratio_t^(1 - r) ratio_s^r, then a step with eps_m there.

    x_s / alpha_s = x / alpha_t + (ratio_s - ratio_t) ((1 - w) eps + w eps_m), w = 1 / (2 r). Raises InputError for r
    outside (0, 1].
    """

    r: Share = 0.5

    def tableau_of(self, t: Node, s: Node) -> Tableau:
        h = math.log(s.ratio / t.ratio)
        c = math.expm1(self.r * h) / math.expm1(h)
        weight = 1 / (2 * self.r)
        return Tableau((0.0, c), ((), (c,)), (1 - weight, weight))
