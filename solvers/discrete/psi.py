"""``psi``: a share of every token is drawn afresh from its clean value instead of from its posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..registry.options import named
from ..registry.ranges import Fraction, Range
from ..types.process import Process, ProcessNode
from ..types.solver import Step, solvers
from .base import DiscreteSolver, Moves, Product, evaluated


@solvers.register(
    "psi",
    kind="posterior",
    order=1,
    native="x0",
    reference="Deschenaux et al. 2026, arXiv:2602.21185; of masks: Wang et al. 2025, arXiv:2503.00307, eq. 5, "
    "sections 4.1 and 4.2",
    formula="x_s ~ (1 - f) (posterior of x_s given x_t) + f sum_c x0(c) P_s[c, y], f = 1 - kappa^h; h = 1 if per=step",
    note="kappa=1 is tweedie. With masks it is ReMDM, sigma = f (1 - alpha_s), which contains forward-backward steps "
    "and the correctors of discrete flow matching; its released settings are remdm_cap, remdm_rescale, remdm_conf and "
    "remdm_loop. A step keeps the law of each token alone, not that of several together: with per=step an error stays "
    "where the solve ends before the data; with masks it falls with order 1/2 in solves to the data",
)
@dataclass(frozen=True)
class Psi(DiscreteSolver):
    """A superposition of the posterior, which keeps what is known of a token, and a fresh draw of the clean token with
    the forward noise on it, which corrects earlier errors.

    With masks, a known token is masked with the probability sigma = f (1 - alpha_s), and masked ones are filled in
    accordingly more often, for any f up to min(1 / alpha_t, 1 / (1 - alpha_s)). There sigma is largest, sigma_max =
    min(1, (1 - alpha_s) / alpha_t).

    Args:
        kappa: 1 - eta, the weight of the posterior.
        per: the weight of a step is kappa to the power of its length on the natural clock (clock), so that a solve has
            a limit of many steps, which is right; or kappa in every step (step), as published.
        remask: what eta is, with masks: f itself (share), sigma / sigma_max (rescale), or sigma where it is less than
            sigma_max (cap).
        by: ``tokens`` in specs. Known tokens are masked alike (even), or sigma is divided among them by softmax(-p),
            where p is the probability with which a token was drawn (confidence); then nothing is filled in for it.
        window: two times as shares of t_max, between which kappa applies: t of a step is at most the first and above
            the second. Other steps are those of tweedie. Without it, all steps.
        hold: alpha in the window, where the state then stays at this noise level; the times before and after it are
            stretched accordingly. 0: the process's own alpha.
    """

    kappa: Fraction = 0.9
    per: Literal["clock", "step"] = "clock"
    remask: Literal["share", "rescale", "cap"] = "share"
    by: Literal["even", "confidence"] = named("tokens", "even")
    window: tuple[Fraction, ...] = ()
    hold: Annotated[float, Range(0, 1, "[)")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window and (len(self.window) != 2 or self.window[0] <= self.window[1]):
            raise InputError(f"psi: window takes two times as shares of t_max, the later first, got {self.window}")
        if self.hold and (not self.window or not self.window[1]):
            raise InputError("psi: hold is alpha in a window that ends before the data, such as window=[0.55, 0.05]")

    @property
    def order(self) -> float:
        """1; 1/2 if many tokens are masked in each of the last steps, however short; 0 if no order is promised."""
        if not self.consistent:
            return 0.0
        slow = self.per == "step" or (self.remask == "cap" and self._to_data)
        return 0.5 if slow and self.kappa < 1 else 1.0

    @property
    def consistent(self) -> bool:
        """Whether tokens are masked regardless of their values, and fewer in a step the shorter it is, or the nearer
        to the data."""
        vanishes = self.per == "clock" or (self.remask != "share" and self._to_data)
        return self.kappa == 1 or (self.by == "even" and vanishes)

    @property
    def _to_data(self) -> bool:
        return not self.window or self.window[1] == 0

    @property
    def restartable(self) -> bool:
        return self.by == "even"

    def check(self, process: Process) -> None:
        masks = process.mask is not None and process.mixture
        if not masks and (self.remask, self.by, self.hold) != ("share", "even", 0):
            raise InputError(
                f"{self} masks tokens again, which {process} does not mask: leave out all but kappa and per"
            )

    def init(self, problem: Any, x: Tensor, nodes: Any) -> Any:
        self.check(problem.path)
        return torch.full(x.shape, math.inf, dtype=torch.float64, device=x.device) if self.by == "confidence" else None

    def share(self, process: Process, t: ProcessNode, s: ProcessNode) -> float:
        """f, the share of the fresh draw in the step from t to s."""
        if self.kappa == 1 or (self.window and not self.window[0] >= t.t / process.t_max > self.window[1]):
            return 0.0
        length = 1.0 if self.per == "step" else process.reading(s) - process.reading(t)
        eta = 1 - self.kappa**length if math.isfinite(length) else 1.0
        if self.remask == "share":
            return eta
        t, s = self.held(process, t), self.held(process, s)
        gone, alpha = math.exp(-process.reading(s)), -math.expm1(-process.reading(t))
        most = min(1 / gone, 1 / alpha if alpha else math.inf)
        return eta * most if self.remask == "rescale" else min(eta / gone, most)

    def held(self, process: Process, node: ProcessNode) -> ProcessNode:
        """The node whose noise the state has at a node of the grid."""
        if not self.hold:
            return node
        at, share, (first, last) = process.time_of(-math.log1p(-self.hold)), node.t / process.t_max, self.window
        if share > first:
            return process(at + (process.t_max - at) * (share - first) / (1 - first))
        return process(at if share > last else at * share / last)

    def moves(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Tensor | None) -> Moves:
        process, share = problem.path, self.share(problem.path, t, s)
        t, s = self.held(process, t), self.held(process, s)
        x0 = evaluated(problem, x, t).x0
        kept, fresh = process.posterior(x0, x, t, s), process.transition(process.clean, s, x).push(x0)
        if carry is None:
            x = yield Product(((1 - share) * kept + share * fresh).clamp_min(0), x)  # shares above 1 may round below 0
            return Step(x)
        eta = torch.softmax(-carry.flatten(1), 1).nan_to_num(0.0).view(*x.shape, 1)  # where none is known: 0 / 0
        y = yield Product(((1 - share * eta) * kept + share * eta * fresh).clamp_min(0), x)
        drawn = torch.where(x == process.mask, x0.gather(-1, y[..., None])[..., 0], carry)
        return Step(y, torch.where(y == process.mask, math.inf, drawn))

    def end(self, problem: Any, x: Tensor, t: ProcessNode, s: ProcessNode, carry: Any) -> Moves:
        return super().end(problem, x, self.held(problem.path, t), s, carry)
