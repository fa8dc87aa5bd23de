"""Adaptive Adams method: per-sample steps, each at the cost of one evaluation."""

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


@solvers.register(
    "adams_adaptive",
    aliases=("abm", "adams_bashforth_moulton"),
    kind="adaptive ODE",
    order=5,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=1,
    reference="Hairer, Norsett and Wanner 1993, sections III.1 and III.5, with local extrapolation",
    formula="x_s / (alpha_s + sigma_s) = x / (alpha + sigma) + sum_j (eps_j - x0_j) int l_j(c) dr, "
    "r = sigma / (alpha + sigma), c = log((r + 0.1) / (1.1 - r))",
)
@dataclass(frozen=True)
class AdamsAdaptive(Adaptive):
    """An Adams-Bashforth predictor and an Adams-Moulton corrector; each sample has its own uneven steps.

    On every Gaussian path the ODE is d(x / (alpha + sigma)) / dr = eps - x0 with r = sigma / (alpha + sigma). The
    predictor integrates the polynomial in c through the last ``order`` - 1 slopes. The model is evaluated once, at the
    predictor's result. The corrector integrates the polynomial through these slopes and the new one. The error
    estimate is the difference from the corrector of one order less, through the last ``order`` - 1 slopes.

    The clock is c = log((r + a) / (1 - r + a)) with a = 0.1. It is like log(sigma / alpha) where neither alpha nor
    sigma is small, and like r at the two ends: predictions change over decades of sigma / alpha, but changes at the
    ends hardly matter.

    A solve begins with one slope and gains an order at each step. n accepted and rejected steps take 1 + n
    evaluations. The tolerance of a component of y = x / (alpha + sigma) is atol + rtol max(|y_t|, |y_s|), so every path
    takes the same steps. After a step, h is multiplied by 0.8 err^(-1 / p), at most 2, with p the order of the estimate
    plus 1. ``first_step`` is a length in c; None means (0.1 / |slope|)^(1/2), the slope in units of the tolerance.
    """

    order: Annotated[int, Range(2, 7)] = 5

    ramps: ClassVar[bool] = True
    reuses: ClassVar[bool] = True
    largest: ClassVar[float] = 2.0

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
        predictor, corrector, lower = self._weights(samples, ends)
        starts = [sample.node for sample in samples]
        before, after = (column([self.scale(n) for n in nodes], x) for nodes in (starts, ends))
        y = x / before
        moved = after * (y + _sum(predictor, slope))
        known = torch.cat([slope, self.ask(problem, moved, ends, dtype).unsqueeze(1)], 1)
        new = y + _sum(corrector, known)
        return Attempt(after * new, _sum(corrector - lower, known), new, known[:, 1:])

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        factor = 0.8 * errors[0] ** (-1 / (self._used(sample) + 1))
        if errors[0] > 1:
            return False, max(factor, self.smallest)
        return True, min(factor, self.largest)

    def _used(self, sample: Progress) -> int:
        """The number of slopes that the predictor of a sample's next step uses."""
        return min(len(sample.places), self.order - 1)

    def _weights(self, samples: Sequence[Progress], ends: Sequence[Node]) -> tuple[Rows, Rows, Rows]:
        """The weights of the slopes, latest last: of the predictor (n, k), the corrector (n, k + 1), and the corrector
        of one order less (n, k + 1)."""
        k = self.order - 1
        predictor, corrector, lower = (np.zeros((len(samples), columns)) for columns in (k, k + 1, k + 1))
        goals = np.array([self.clock(end) for end in ends])
        for used in {self._used(sample) for sample in samples}:
            some = [i for i, sample in enumerate(samples) if self._used(sample) == used]
            at = np.array([(*samples[i].places[-used:], goals[i]) for i in some])
            start, h = at[:, -2, None], (at[:, -1] - at[:, -2])[:, None]
            points = start + h * GAUSS[0]
            measure = h * GAUSS[1] * self._rate(points)
            predictor[some, k - used :] = lagrange_rows(at[:, :-1], points, measure)
            corrector[some, k - used :] = lagrange_rows(at, points, measure)
            lower[some, k + 1 - used :] = lagrange_rows(at[:, 1:], points, measure)
        return predictor, corrector, lower


def _sum(weights: Rows, slopes: Tensor) -> Tensor:
    """sum_j w_j slope_j (n, *) of slopes (n, k, *)."""
    out = torch.zeros_like(slopes[:, 0])
    for j in range(weights.shape[1]):
        out = out + column(weights[:, j].tolist(), out) * slopes[:, j]
    return out
