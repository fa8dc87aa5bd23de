"""SA-Solver: stochastic Adams methods with a predictor and a corrector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import InputError
from ..registry.ranges import NonNegative, Range
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Coefficients, Multistep, adams


@solvers.register(
    "sa_solver",
    kind="SDE",
    order=2,
    stochastic=True,
    native="x0",
    reference="Xue et al. 2023, arXiv:2309.05019, eq. 12-18 and algorithm 1",
    formula="x_s = e^(-eta^2 h) (sigma_s / sigma_t) x + alpha_s sum_j w_j x0_j + sigma_s sqrt(1 - e^(-2 eta^2 h)) z",
    equals=(
        "sa_solver(predictor_order=1, corrector_order=0) = ddpm",
        "sa_solver(predictor_order=3, corrector_order=0) = dpmpp_3m_sde",
    ),
    note="the order in the covariance is at most 2, with eta=0 at most 3; corrector_order=1 gives order 1; "
    "quantity=eps is stiff at the noisy end; the paper's tau is eta",
)
@dataclass(frozen=True)
class SASolver(Multistep):
    """SA-Solver: a stochastic Adams predictor and corrector, with noise of strength eta where the ratio is in a range.

    The corrector of order k uses the newest prediction and the k - 1 before it; ``corrector_order=0`` means no
    corrector. ``pece`` evaluates the model again after the corrector: two evaluations a step. ``few_steps`` weighs the
    difference of two predictions of x0 by (1 + eta^2) h / 2 instead of its integral, as the released code does.
    """

    predictor_order: Annotated[int, Range(1, 4)] = 3
    corrector_order: Annotated[int, Range(0, 5)] = 4
    eta: NonNegative = 1.0
    ratios: tuple[float, ...] = (0.0, math.inf)
    variant: Literal["exact", "few_steps"] = "exact"
    pece: bool = False
    quantity: Literal["x0", "eps"] = "x0"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ratios) != 2 or not self.ratios[0] <= self.ratios[1]:
            raise InputError(f"sa_solver: ratios are the least and the greatest, got {list(self.ratios)}")

    @property
    def depth(self) -> int:
        return self.predictor_order

    @property
    def memory(self) -> int:
        return max(self.predictor_order, self.corrector_order - 1)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def evaluations(self) -> int:
        return 2 if self.pece else 1

    @property
    def evaluate_again(self) -> bool:
        return self.pece

    @property
    def nominal_order(self) -> float:
        # the corrector sets the result; its order is at most one more than the predictor's
        predictor, corrector = self.predictor_order, self.corrector_order
        reached = min(corrector, predictor + 1) if corrector else predictor
        return min(reached, 2) if self.stochastic else reached

    @property
    def ceiling(self) -> float:
        return 3 if self.corrector_order else 2  # the first step is Euler's; a corrector raises its order by one

    def corrector(self, problem: Problem, past: Sequence[Node], used: int) -> Sequence[float]:
        if not self.corrector_order:
            return ()
        return self.integral(problem, past[0], past[1], past[: self.corrector_order]).weights

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Coefficients:
        eta = self.eta if self.ratios[0] <= t.ratio <= self.ratios[1] else 0.0
        step = adams(problem, s, t, nodes, self.quantity, "lam", eta)
        if self.variant == "exact" or self.quantity == "eps" or len(nodes) != 2:
            return step
        # the weight of newer less older: (1 + eta^2) h / 2, times h over their distance in lam
        newer, older = nodes
        share = (1 + eta**2) * (s.lam - t.lam) / 2 * (s.lam - t.lam) / (newer.lam - older.lam)
        return step._replace(
            weights=(sum(step.weights) + share, -share) if newer is t else (share, sum(step.weights) - share)
        )
