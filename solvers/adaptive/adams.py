"""Adaptive Adams method: per-sample steps and orders, each step at the cost of one evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..one_step.coefficients import GAUSS, Rows, lagrange_rows
from ..registry.ranges import Range
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import solvers
from .base import Adaptive, Attempt, Progress, column, row_norms

SOFTNESS = 0.1  # the number a in the clock
SAFETY, RETRY = 0.7, 0.9  # of the next length; the greatest factor after a rejected step
LEAST = 2  # the lowest order
# the order falls if it allows DOWN times the length, and rises if it allows UP times the length: low orders are stabler
DOWN, UP = 0.9, 1.1


@solvers.register(
    "adams_adaptive",
    aliases=("abm", "adams_bashforth_moulton"),
    kind="adaptive ODE",
    order=6,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=1,
    reference="Hairer, Norsett and Wanner 1993, sections III.1, III.5 and III.7, with local extrapolation",
    formula="x_s / (alpha_s + sigma_s) = x / (alpha + sigma) + sum_j (eps_j - x0_j) int l_j(c) dr, "
    "r = sigma / (alpha + sigma), c = log((r + 0.1) / (1.1 - r))",
)
@dataclass(frozen=True)
class AdamsAdaptive(Adaptive):
    """An Adams-Bashforth predictor and an Adams-Moulton corrector; each sample has its own uneven steps and order.

    On every Gaussian path the ODE is d(x / (alpha + sigma)) / dr = eps - x0 with r = sigma / (alpha + sigma). At order
    q the predictor integrates the polynomial in c through the last q - 1 slopes. The model is evaluated once, at the
    predictor's result. The corrector integrates the polynomial through these slopes and the new one. The error
    estimate is the difference from the corrector of order q - 1, through the last q - 1 slopes.

    The clock is c = log((r + a) / (1 - r + a)) with a = 0.1. It is like log(sigma / alpha) where neither alpha nor
    sigma is small, and like r at the two ends: predictions change over decades of sigma / alpha, but changes at the
    ends hardly matter.

    A solve begins with one slope, at order 2. After each step, the next order is q - 1, q or q + 1, whichever allows
    the longest step, from 2 to ``order``. Where stability limits the steps, the differences of high order oscillate and
    grow, and the order falls. n accepted and rejected steps take 1 + n evaluations. The tolerance of a component of
    y = x / (alpha + sigma) is atol + rtol max(|y_t|, |y_s|), so every path takes the same steps. After a step, h is
    multiplied by 0.7 err^(-1 / q), at most 2.5. ``first_step`` is a length in c; None means (0.1 / |slope|)^(1/2), the
    slope in units of the tolerance. ``max_step`` is by default 0.5; the whole path is 4.8 long.
    """

    order: Annotated[int, Range(2, 7)] = 6

    ramps: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    largest: ClassVar[float] = 2.5

    @property
    def longest(self) -> float:
        # at x = E[x0] and small sigma every slope vanishes at both ends of the path: one step would seem exact
        return 0.5 if self.max_step is None else self.max_step

    @staticmethod
    def scale(node: Node) -> float:
        """The number that the state is divided by."""
        return node.alpha + node.sigma

    def clock(self, node: Node) -> float:
        r = node.sigma / self.scale(node)
        return math.log((r + SOFTNESS) / (1 - r + SOFTNESS))

    def lam_at(self, value: float) -> float:
        grown = math.exp(value)
        r = ((1 + SOFTNESS) * grown - SOFTNESS) / (1 + grown)
        return math.log((1 - r) / r)

    def _rate(self, clock: Rows) -> Rows:
        """dr / dc at each c."""
        r = ((1 + SOFTNESS) * np.exp(clock) - SOFTNESS) / (1 + np.exp(clock))
        rate: Rows = (r + SOFTNESS) * (1 - r + SOFTNESS) / (1 + 2 * SOFTNESS)
        return rate

    def slope(self, prediction: Prediction) -> Tensor:
        return prediction.eps - prediction.x0

    def remembered(self, slope: Tensor) -> Tensor:
        return slope.unsqueeze(1).expand(-1, self.order - 1, *slope.shape[1:])

    def measured(self, x: Tensor, node: Node) -> Tensor:
        return x / self.scale(node)

    def automatic(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> list[float]:
        rate, y = float(self._rate(np.array([[self.clock(t)]]))[0, 0]), self.measured(x, t)
        norms = row_norms(rate * slope[:, -1] / self.tolerance(y, y))
        return [(0.1 / max(norm, 1e-10)) ** 0.5 for norm in norms]

    def attempt(
        self,
        problem: Problem,
        x: Tensor,
        slope: Tensor,
        samples: Sequence[Progress],
        ends: Sequence[Node],
        dtype: torch.dtype,
    ) -> Attempt:
        predictor, corrector, *rivals = self._weights(samples, ends)
        before, after = (
            column([self.scale(n) for n in nodes], x) for nodes in ([sample.node for sample in samples], ends)
        )
        y = x / before
        moved = after * (y + _sum(predictor, slope))
        known = torch.cat([slope, self.ask(problem, moved, ends, dtype).unsqueeze(1)], 1)
        new = y + _sum(corrector, known)
        error, *others = (_sum(weights, known) for weights in rivals)
        return Attempt(after * new, error, new, known[:, 1:], others=tuple(others))

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        q, (lower, higher) = self._order(sample), sample.others
        factor, sample.order = _factor(errors[0], q), q
        if q > LEAST and _factor(lower, q - 1) > DOWN * factor:
            factor, sample.order = _factor(lower, q - 1), q - 1
        if errors[0] > 1:
            return False, max(min(factor, RETRY), self.smallest)
        if sample.order == q and self._raises(sample) and _factor(higher, q + 1) > UP * factor:
            factor, sample.order = _factor(higher, q + 1), q + 1
        return True, min(factor, self.largest)

    def _order(self, sample: Progress) -> int:
        """The order of a sample's next step: its corrector uses so many slopes."""
        return max(LEAST, min(sample.order, len(sample.places) + 1, self.order))

    def _raises(self, sample: Progress) -> bool:
        """Whether a sample has slopes enough to estimate the error at one order more."""
        return len(sample.places) >= self._order(sample) < self.order

    def _weights(self, samples: Sequence[Progress], ends: Sequence[Node]) -> tuple[Rows, ...]:
        """The weights of the slopes, latest last: of the predictor (n, k), the corrector (n, k + 1), and the error
        estimates (n, k + 1) at its order, one less and one more; 0 for estimates that cannot be made."""
        k = self.order - 1
        predictor, (corrector, *errors) = np.zeros((len(samples), k)), np.zeros((4, len(samples), k + 1))
        goals = np.array([self.clock(end) for end in ends])
        kinds = [(self._order(sample), self._raises(sample)) for sample in samples]
        for q, raises in set(kinds):
            some = [i for i, kind in enumerate(kinds) if kind == (q, raises)]
            at = np.array([(*samples[i].places[1 - q - raises :], goals[i]) for i in some])
            start, h = at[:, -2, None], (at[:, -1] - at[:, -2])[:, None]
            points = start + h * GAUSS[0]
            measure = h * GAUSS[1] * self._rate(points)

            def of(count: int, at: Rows = at, points: Rows = points, measure: Rows = measure) -> Rows:
                """The weights of the corrector through the last ``count`` slopes, among k + 1."""
                found = np.zeros((len(at), k + 1))
                found[:, k + 1 - count :] = lagrange_rows(at[:, -count:], points, measure)
                return found

            predictor[some, k + 1 - q :] = lagrange_rows(at[:, -q:-1], points, measure)
            high, low = of(q), of(q - 1)
            corrector[some], errors[0][some] = high, high - low
            if q > LEAST:
                errors[1][some] = low - of(q - 2)
            if raises:
                errors[2][some] = of(q + 1) - high
        return predictor, corrector, *errors


def _factor(error: float, q: int) -> float:
    """The factor to the length of the next step, from the error estimate of a step of order q."""
    return SAFETY * math.pow(max(error, 1e-10), -1 / q)


def _sum(weights: Rows, slopes: Tensor) -> Tensor:
    """sum_j w_j slope_j (n, *) of slopes (n, k, *)."""
    out = torch.zeros_like(slopes[:, 0])
    for j in range(weights.shape[1]):
        out = out + column(weights[:, j].tolist(), out) * slopes[:, j]
    return out
