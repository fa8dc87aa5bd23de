"""``psi``: a share of every token is drawn afresh from its clean value instead of from its posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..registry.ranges import Fraction
from ..types.process import Process, ProcessNode
from ..types.solver import Step, solvers
from .base import DiscreteSolver, Moves, Product, evaluated


@solvers.register(
    "psi",
    kind="posterior",
    order=1,
    native="x0",
    reference="Deschenaux et al. 2026, arXiv:2602.21185; of masks: Wang et al. 2025, arXiv:2503.00307, eq. 5",
    formula="x_s ~ k (posterior of x_s given x_t) + (1 - k) sum_c x0(c) P_s[c, y], k = kappa^h; h = 1 if per=step",
    note="kappa=1 is tweedie. With masks it is ReMDM, sigma = (1 - k) (1 - alpha_s), which contains forward-backward "
    "steps and the correctors of discrete flow matching. A step keeps the law of each token alone, not that of several "
    "together: with per=step the error does not vanish with the steps",
)
@dataclass(frozen=True)
class Psi(DiscreteSolver):
    """A superposition of the posterior, which keeps what is known of a token, and a fresh draw of the clean token with
    the forward noise on it, which corrects earlier errors.

    Args:
        kappa: the weight of the posterior.
        per: the weight of a step is kappa to the power of its length on the natural clock (clock), so that a solve has
            a limit of many steps, which is right; or kappa in every step (step), as published.
    """

    kappa: Fraction = 0.9
    per: Literal["clock", "step"] = "clock"

    @property
    def order(self) -> float:
        """1; with the weight kappa < 1 in every step there is none."""
        return 1.0 if self.consistent else 0.0

    @property
    def consistent(self) -> bool:
        return self.per == "clock" or self.kappa == 1

    def weight(self, process: Process, t: ProcessNode, s: ProcessNode) -> float:
        """The weight of the posterior in the step from t to s."""
        if self.per == "step" or self.kappa == 1:
            return self.kappa
        length = process.reading(s) - process.reading(t)
        return self.kappa**length if math.isfinite(length) else 0.0

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        process, x0 = problem.path, evaluated(problem, x, t).x0
        kept, fresh = process.posterior(x0, x, t, s), process.transition(process.clean, s, x).push(x0)
        weight = self.weight(process, t, s)
        x = yield Product(weight * kept + (1 - weight) * fresh, x)
        return Step(x, carry)
