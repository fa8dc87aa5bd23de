"""Embedded pairs with per-sample steps: Runge-Kutta pairs and the adaptive DPM-Solver.

An embedded pair computes two results of different orders from the same stages; their difference estimates the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..one_step.coefficients import phi1, phi2
from ..registry.ranges import AnyPositive, Count, Share
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Adaptive, Attempt, Progress, column, pid, row_norms


class Weights(NamedTuple):
    """The weights of the slopes of one inner step, in x / scale: for each later stage, for the new state, and for the
    difference of the pair's two results."""

    stages: Sequence[Sequence[float]]
    new: Sequence[float]
    error: Sequence[float]


class Pair(Adaptive):
    """An embedded pair: x_i / scale_i = x / scale_t + sum_j w_ij slope_j, with stage i at clock_t + c_i h.

    Errors and tolerances are those of x / (alpha + sigma), so every path takes the same steps.
    """

    @property
    def stages(self) -> tuple[float, ...]:
        """The stages' places c_i within the step, as shares of h."""
        raise NotImplementedError

    def scale(self, node: Node) -> float:
        """The number that the state is divided by."""
        return node.alpha

    def size(self, node: Node) -> float:
        """The number that states and errors are divided by where the tolerance measures them."""
        return node.alpha + node.sigma

    def measured(self, x: Tensor, node: Node) -> Tensor:
        return x / self.size(node)

    def weights(self, start: Node, h: float) -> Weights:
        """The weights of a step of length h on the clock; h is negative where the clock falls."""
        raise NotImplementedError

    def compared(self, new: Tensor, low: Tensor) -> Tensor:
        """The state that tolerances are relative to."""
        return new

    def attempt(
        self,
        problem: Problem,
        x: Tensor,
        slope: Tensor,
        samples: Sequence[Progress],
        ends: Sequence[Node],
        dtype: torch.dtype,
    ) -> Attempt:
        starts = [sample.node for sample in samples]
        lengths = [self.clock(end) - self.clock(start) for start, end in zip(starts, ends, strict=True)]
        weights = [self.weights(start, h) for start, h in zip(starts, lengths, strict=True)]
        found = [slope]
        for k, c in enumerate(self.stages[1:]):
            nodes = ends
            if c != 1:
                places = [self.clock(node) + c * h for node, h in zip(starts, lengths, strict=True)]
                nodes = self.nodes_at(problem, places)
            moved = self._move(x, starts, nodes, [w.stages[k] for w in weights], found)
            found.append(self.ask(problem, moved, nodes, dtype))
        new = moved if self.reuses else self._move(x, starts, ends, [w.new for w in weights], found)
        error = self._sum(ends, [w.error for w in weights], found)
        sizes = column([self.size(end) for end in ends], x)
        compare = self.compared(new, new - error) / sizes
        return Attempt(new, error, compare, found[-1] if self.reuses else None, error / sizes)

    def _sum(self, ends: Sequence[Node], weights: Sequence[Sequence[float]], found: Sequence[Tensor]) -> Tensor:
        """scale sum_j w_j slope_j of every sample (n, *)."""
        out, scales = torch.zeros_like(found[0]), [self.scale(end) for end in ends]
        numbers = [[scale * w[j] for scale, w in zip(scales, weights, strict=True)] for j in range(len(found))]
        # one tensor of all: to make one costs more than the sum of a few samples
        columns = torch.tensor(numbers, dtype=out.dtype, device=out.device).view(len(found), -1, *(1,) * (out.ndim - 1))
        for row, factors, slope in zip(numbers, columns, found, strict=True):
            if any(row):
                out = out + factors * slope
        return out

    def _move(
        self,
        x: Tensor,
        starts: Sequence[Node],
        ends: Sequence[Node],
        weights: Sequence[Sequence[float]],
        found: Sequence[Tensor],
    ) -> Tensor:
        kept = [self.scale(end) / self.scale(start) for start, end in zip(starts, ends, strict=True)]
        return column(kept, x) * x + self._sum(ends, weights, found)


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of a pair whose last stage is at the new state: places c, stage weights a, and e = b - b_hat."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]


DORMAND_PRINCE = Tableau(
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    e=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
BOGACKI_SHAMPINE = Tableau(
    c=(0, 1 / 2, 3 / 4, 1),
    a=((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
TSITOURAS = Tableau(
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    e=(
        *(-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629),
        *(0.5823571654525552, -0.45808210592918697, 1 / 66),
    ),
)


class RungeKuttaPair(Pair):
    """A Runge-Kutta pair that continues from the result of higher order; a subclass defines its tableau.

    It integrates x / (alpha + sigma) in r = sigma / (alpha + sigma). There every Gaussian path becomes the straight one
    of rectified flow, d / dr = eps - x0: r lies in [0, 1], and a solution is a line wherever the predictions are
    constant. (In lam the same solution takes two to four times the evaluations.) ``first_step`` is a length in r.

    The first stage is the last one of the inner step before, so n inner steps take 1 + n ``evaluations``. The tolerance
    of a component is atol + rtol max(|x_t|, |x_s|). Step lengths follow Soederlind's controller PI.4.2 with safety 0.9
    and factors in [0.2, 10]. After a rejection h is multiplied by 0.9 err^(-1/p) and does not grow in the next step
    (Hairer, Norsett and Wanner 1993, section II.4).

    The default first step is (0.01 / |slope|)^(1 / (p + 1)), the slope in units of the tolerance. This is the rule of
    Hairer et al. for a solution whose second derivative is at most about its first. From data to noise it is at most
    2 r: predictions may change with every decade of r, and a longer step would not see these changes.
    """

    tableau: ClassVar[Tableau]
    reuses = True

    @property
    def stages(self) -> tuple[float, ...]:
        return self.tableau.c

    def clock(self, node: Node) -> float:
        return node.sigma / self.scale(node)

    def lam_at(self, value: float) -> float:
        return math.log((1 - value) / value)

    def scale(self, node: Node) -> float:
        return node.alpha + node.sigma

    def slope(self, prediction: Prediction) -> Tensor:
        return prediction.eps - prediction.x0

    def weights(self, start: Node, h: float) -> Weights:
        rows = [[h * w for w in row] for row in self.tableau.a]
        return Weights(rows, rows[-1], [h * w for w in self.tableau.e])

    def automatic(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> list[float]:
        y = self.measured(x, t)
        norms = row_norms(slope / self.tolerance(y, y))
        most = 2 * self.clock(t) if t.lam > s.lam else math.inf
        return [min((0.01 / max(norm, 1e-10)) ** (1 / (self.order + 1)), most) for norm in norms]

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        if errors[0] > 1:
            return False, max(0.9 * errors[0] ** (-1 / self.order), self.smallest)
        factor = 0.9 * pid(errors, self.order, 0.2, 0.4, 0.0)
        return True, min(max(factor, self.smallest), 1.0 if sample.retried else self.largest)


@solvers.register(
    "rk45",
    aliases=("ode", "ode45", "dormand_prince"),
    kind="adaptive ODE",
    order=5,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=6,
    reference="Dormand and Prince 1980, J. Comput. Appl. Math. 6(1), table 2; Song et al. 2021, arXiv:2011.13456, "
    "appendix D.4",
    formula="an embedded 5(4) pair on d(x / (alpha + sigma)) / dr = eps - x0, r = sigma / (alpha + sigma)",
)
@dataclass(frozen=True)
class RK45(RungeKuttaPair):
    """Dormand and Prince's 5(4) pair with per-sample steps; score_sde's black-box sampler uses this pair."""

    tableau: ClassVar[Tableau] = DORMAND_PRINCE


@solvers.register(
    "rk23",
    aliases=("ode23", "bosh3", "bogacki_shampine"),
    kind="adaptive ODE",
    order=3,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=3,
    reference="Bogacki and Shampine 1989, Appl. Math. Lett. 2(4), p. 321-325",
    formula="an embedded 3(2) pair on d(x / (alpha + sigma)) / dr = eps - x0, r = sigma / (alpha + sigma)",
)
@dataclass(frozen=True)
class RK23(RungeKuttaPair):
    """Bogacki and Shampine's 3(2) pair with per-sample steps, for loose tolerances."""

    tableau: ClassVar[Tableau] = BOGACKI_SHAMPINE


@solvers.register(
    "tsit5",
    aliases=("tsitouras",),
    kind="adaptive ODE",
    order=5,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=6,
    reference="Tsitouras 2011, Comput. Math. Appl. 62(2), table 1",
    formula="an embedded 5(4) pair on d(x / (alpha + sigma)) / dr = eps - x0, r = sigma / (alpha + sigma)",
)
@dataclass(frozen=True)
class Tsit5(RungeKuttaPair):
    """Tsitouras' 5(4) pair with per-sample steps."""

    tableau: ClassVar[Tableau] = TSITOURAS


@solvers.register(
    "dpm_adaptive",
    aliases=("dpm_solver_adaptive",),
    kind="adaptive ODE",
    order=3,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=3,
    reference="Lu et al. 2022, arXiv:2206.00927, appendix C.2-C.3; the controller: Soederlind 2003, ACM TOMS 29(1)",
    formula="DPM-Solver-3 with DPM-Solver-2 inside it (or 2 with 1), each sample with its own steps in lam",
    note="an inner step after a rejection takes one evaluation less",
)
@dataclass(frozen=True)
class DPMAdaptive(Pair):
    """DPM-Solver-23 (order=3) or DPM-Solver-12 (order=2), the published pairs with per-sample steps in lam.

    It solves d(x / alpha) / d lam = -ratio eps, with the exponential integrated exactly. ``first_step`` is a length in
    lam. The solve continues from x_high, the result of higher order.

    E is the root mean square of (y_high - y_low) / max(atol, rtol max(|y_low|, |y_low of the last accepted step|)),
    with y = x / (alpha + sigma), so every path takes the same steps. No step is longer than ``max_step``, by default
    3/2 (order 3) or 1/2 (order 2): over a longer step the two results may coincide and both be wrong. The published
    methods have no such limit, rtol=0.05 and atol=0.0078, and measure x (``error_scale="one"``, Lu et al.) or x / alpha
    (``alpha``, k-diffusion): ``dpm_adaptive(rtol=0.05, atol=0.0078, max_step=inf, error_scale=alpha)`` is the latter's
    method, but for lengths rounded to five binary digits.

    After a step h is multiplied by 1 + atan(w - 1), w = E_n^-(p + i + d) E_(n-1)^(p + 2 d) E_(n-2)^-d, each power over
    ``order``. The step is accepted where this factor is at least ``accept_safety``. The options pcoeff, icoeff, dcoeff
    and accept_safety have k-diffusion's names and defaults.
    """

    rtol: AnyPositive = 0.01
    atol: AnyPositive = 0.001
    first_step: AnyPositive | None = 0.05
    max_steps: Count = 10000
    order: Literal[2, 3] = 3
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: Share = 0.81
    error_scale: Literal["alpha_plus_sigma", "alpha", "one"] = "alpha_plus_sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (2, 3):
            raise InputError(f"dpm_adaptive: order must be 2 or 3, got {self.order!r}")
        if not self.pcoeff + self.icoeff + self.dcoeff > 0:
            raise InputError(
                "dpm_adaptive: pcoeff + icoeff + dcoeff must be positive, otherwise steps grow with their error; "
                f"got {self.pcoeff:g} + {self.icoeff:g} + {self.dcoeff:g}"
            )

    @property
    def evaluations(self) -> int:
        return int(self.order)

    @property
    def stages(self) -> tuple[float, ...]:
        return (0, 1 / 3, 2 / 3) if self.order == 3 else (0, 1 / 2)

    @property
    def longest(self) -> float:
        return (1.5 if self.order == 3 else 0.5) if self.max_step is None else self.max_step

    def size(self, node: Node) -> float:
        if self.error_scale == "one":
            return 1.0
        return node.alpha if self.error_scale == "alpha" else super().size(node)

    def automatic(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> list[float]:
        return [0.05] * len(x)

    def weights(self, start: Node, h: float) -> Weights:
        ratio = start.ratio
        if self.order == 2:  # algorithm 4: r_1 = 1/2, and DPM-Solver-1
            half, whole = -ratio * phi1(h / 2), -ratio * phi1(h)
            return Weights([[half]], [0.0, whole], [-whole, whole])
        # algorithm 5: r_1 = 1/3, r_2 = 2/3, and DPM-Solver-2 with r_1 = 1/3
        first, second, whole = (-ratio * phi1(r * h) for r in (1 / 3, 2 / 3, 1))
        bend, turn = (-ratio * math.exp(-r * h) * -phi2(-r * h) for r in (2 / 3, 1))
        stages = [[first], [second - 2 * bend, 2 * bend]]
        new, low = [whole - 1.5 * turn, 0.0, 1.5 * turn], [whole - 1.5 * whole, 1.5 * whole, 0.0]
        return Weights(stages, new, [a - b for a, b in zip(new, low, strict=True)])

    def tolerance(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.clamp(self.rtol * torch.maximum(before.abs(), after.abs()), min=self.atol)

    def compared(self, new: Tensor, low: Tensor) -> Tensor:
        return low

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        factor = 1 + math.atan(pid(errors, self.order, self.pcoeff, self.icoeff, self.dcoeff) - 1)
        return factor >= self.accept_safety, factor
