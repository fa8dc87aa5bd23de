"""Predictor-corrector multistep methods: UniPC for the ODE, SA-Solver for the SDE. The corrector costs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from .coefficients import phi1
from .errors import InputError
from .multistep import Multistep, Row, adams
from .ranges import NonNegative, Range
from .registry import named
from .types import Node, Problem, solvers


class Unified(Multistep):
    """UniPC: exponential Adams-Bashforth predictor, then Adams-Moulton once the prediction at its end is there.

    Where two predictions (the predictor of order 2, the corrector of order 1) leave a free choice, the difference is
    weighted by B / 2: B = h (``bh1``) or exp(h) - 1, in x0 1 - exp(-h) (``bh2``). Otherwise B cancels.
    """

    depth: int = 3
    correct: bool = True
    variant: str = "bh1"

    @property
    def start_stages(self) -> int:
        return self.depth if self.correct else self.depth - 1

    @property
    def nominal_order(self) -> float:
        return self.depth + self.correct

    @property
    def ceiling(self) -> float:
        if not self.correct:
            return super().ceiling
        return 4 if self.start == "runge_kutta" else 3

    def row(self, problem: Problem, s: Node, past: Sequence[Node]) -> Row:
        row = self.integral(problem, s, past[0], past)
        if len(past) != 2:
            return row
        share = self._half(past[0], s) * (s.lam - past[0].lam) / (past[0].lam - past[1].lam)
        return row._replace(weights=(sum(row.weights) + share, -share))

    def corrector(self, problem: Problem, past: Sequence[Node], used: int) -> Sequence[float]:
        if not self.correct:
            return super().corrector(problem, past, used)
        row = self.integral(problem, past[0], past[1], past[: used + 1])
        if used > 1:
            return row.weights
        share = self._half(past[1], past[0])
        return share, sum(row.weights) - share

    def _half(self, t: Node, s: Node) -> float:
        """B / 2 in x / alpha, with the sign of the predictions' weights."""
        h = s.lam - t.lam
        if self.quantity == "x0":
            return (h if self.variant == "bh1" else phi1(h)) / 2
        return -s.ratio * (h if self.variant == "bh1" else math.expm1(h)) / 2


@solvers.register(
    "uni_pc",
    aliases=("unipc", "unipc_bh1", "uni_pc_bh1"),
    kind="ODE",
    order=4,
    native="x0",
    reference="Zhao et al. 2023, arXiv:2302.04867, eq. 5-10 and algorithms 1-4",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s sum_j w_j x0_j; at the next step, the weights with x0_s among them",
    equals=("uni_pc(order=1, correct=False) = ddim",),
    note="order + 1 with the corrector; an Euler start caps it at 3, start=runge_kutta lifts the cap to 4",
)
@dataclass(frozen=True)
class UniPC(Unified):
    """UniPC: predictor and corrector of one order share their evaluations; ``correct=False`` is UniP."""

    depth: Annotated[int, Range(1, 4)] = named("order", 3)
    variant: Literal["bh1", "bh2"] = "bh1"
    correct: bool = True
    quantity: Literal["x0", "eps"] = "x0"
    start: Literal["lower", "runge_kutta"] = "lower"
    lower_order_final: bool = False


@solvers.register(
    "uni_pc_bh2",
    aliases=("unipc_bh2",),
    kind="ODE",
    order=4,
    native="x0",
    reference="Zhao et al. 2023, arXiv:2302.04867, eq. 5-10, B(h) = exp(h) - 1",
    formula="uni_pc's, with B(h) = exp(h) - 1",
    equals=("uni_pc(variant=bh2)", "uni_pc_bh2(order=2, correct=False) = dpmpp_2m"),
    note="order + 1 with the corrector; an Euler start caps it at 3, start=runge_kutta lifts the cap to 4",
)
@dataclass(frozen=True)
class UniPCBh2(UniPC):
    """UniPC with B(h) = exp(h) - 1."""

    variant: Literal["bh1", "bh2"] = "bh2"


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
    note="of order 2 at most in the covariance, whatever the orders of its parts, of 3 with eta=0; a corrector "
    "of order 1 makes the whole one of order 1; quantity=eps is stiff at the noisy end; the paper's tau is eta",
)
@dataclass(frozen=True)
class SASolver(Multistep):
    """SA-Solver: stochastic Adams, predictor and corrector, with noise of strength eta where the ratio lies in a range.

    The corrector of order k uses the newest prediction and k - 1 before it; 0 leaves it out. ``pece`` evaluates again
    after it: two evaluations a step. ``few_steps`` weighs the difference of two predictions of x0 by (1 + eta^2) h / 2
    instead of its integral, as the released code does.
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
        # the corrector has the last word, and is one order better than what it was predicted from, at most
        predictor, corrector = self.predictor_order, self.corrector_order
        reached = min(corrector, predictor + 1) if corrector else predictor
        return min(reached, 2) if self.stochastic else reached

    @property
    def ceiling(self) -> float:
        return 3 if self.corrector_order else 2  # a corrector lifts the first step, Euler's, by one

    def row(self, problem: Problem, s: Node, past: Sequence[Node]) -> Row:
        return self.integral(problem, s, past[0], past)

    def corrector(self, problem: Problem, past: Sequence[Node], used: int) -> Sequence[float]:
        if not self.corrector_order:
            return ()
        return self.integral(problem, past[0], past[1], past[: self.corrector_order]).weights

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Row:
        eta = self.eta if self.ratios[0] <= t.ratio <= self.ratios[1] else 0.0
        row = adams(problem, s, t, nodes, self.quantity, "lam", eta)
        if self.variant == "exact" or self.quantity == "eps" or len(nodes) != 2:
            return row
        # of the difference of the newer prediction and the older: h' is the way from the older
        newer, older = nodes
        share = (1 + eta**2) * (s.lam - t.lam) / 2 * (s.lam - t.lam) / (newer.lam - older.lam)
        return row._replace(
            weights=(sum(row.weights) + share, -share) if newer is t else (share, sum(row.weights) - share)
        )
