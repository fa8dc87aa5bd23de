"""UniPC: a predictor and a corrector for the ODE, which share their evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..one_step.coefficients import phi1
from ..registry.options import named
from ..registry.ranges import Range
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Coefficients, Multistep


class Unified(Multistep):
    """UniPC: an exponential Adams-Bashforth predictor, corrected by Adams-Moulton when the next prediction is made.

    The predictor of order 2 and the corrector of order 1 use two predictions and leave a free choice: the weight of
    their difference, B / 2. B is h (``bh1``) or, for ``bh2``, exp(h) - 1 in eps and 1 - exp(-h) in x0. At other orders
    B cancels.
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

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        step = super().coefficients(problem, s, past)
        if len(past) != 2:
            return step
        share = self._half(past[0], s) * (s.lam - past[0].lam) / (past[0].lam - past[1].lam)
        return step._replace(weights=(sum(step.weights) + share, -share))

    def corrector(self, problem: Problem, past: Sequence[Node], used: int) -> Sequence[float]:
        if not self.correct:
            return super().corrector(problem, past, used)
        step = self.integral(problem, past[0], past[1], past[: used + 1])
        if used > 1:
            return step.weights
        share = self._half(past[1], past[0])
        return share, sum(step.weights) - share

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
    order=3,
    native="x0",
    reference="Zhao et al. 2023, arXiv:2302.04867, eq. 5-10 and algorithms 1-4",
    formula="x_s = (sigma_s / sigma_t) x + alpha_s sum_j w_j x0_j; the next step corrects x_s, with x0_s in the sum",
    equals=("uni_pc(order=1, correct=False) = ddim",),
    note="order + 1 with the corrector; an Euler start caps it at 3, start=runge_kutta lifts the cap to 4",
)
@dataclass(frozen=True)
class UniPC(Unified):
    """UniPC: a predictor and a corrector of one order share their evaluations; ``correct=False`` is UniP."""

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
    order=3,
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
