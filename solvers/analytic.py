"""Paths and problems whose answers are known, to measure solvers on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from .grids import Schedule
from .types import Node, Prediction

Array = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Path:
    """A Gaussian path for checks: alpha, sigma and their derivatives as functions of t, and the inverse of lam."""

    name: str
    t_min: float
    t_max: float
    numbers: Callable[[float], tuple[float, float, float, float]]
    t_of_lam: Callable[[float], float]

    def __call__(self, t: float) -> Node:
        return Node(t, *self.numbers(t))

    @property
    def clean(self) -> Node:
        """The data."""
        return Node(self.t_min, 1.0, 0.0)

    def __str__(self) -> str:
        return self.name


def _vp(t: float) -> tuple[float, float, float, float]:
    alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2 * t))
    return alpha, sigma, -alpha, alpha**2 / sigma


def _ve(t: float) -> tuple[float, float, float, float]:
    return 1.0, math.exp(t), 0.0, math.exp(t)


# both from ratio 10 to 0.05, wide enough to cross every scale of the mixture below
VP = Path(
    "vp", 0.5 * math.log1p(0.05**2), 0.5 * math.log1p(10**2), _vp, lambda lam: 0.5 * math.log1p(math.exp(-2 * lam))
)
VE = Path("ve", math.log(0.05), math.log(10), _ve, lambda lam: -lam)
PATHS: tuple[Schedule, ...] = (VP, VE)


@dataclass(frozen=True)
class Mixture:
    """x0 ~ sum_k w_k N(m_k, v) in every coordinate: rows and coordinates are independent, sums run over k alone."""

    schedule: Schedule
    means: tuple[float, ...] = (-1.2, 0.3, 1.5)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    v: float = 0.09

    def node(self, t: float) -> Node:
        """The path at t."""
        return self.schedule(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""
        return self.schedule(self.schedule.t_of_lam(lam))

    def predict(self, x: Tensor, node: Node) -> Prediction:
        """The posterior mean of x0, and eps."""
        y, spread = x / node.alpha, self.v + node.ratio**2
        logits = [math.log(w) - 0.5 * (y - m) ** 2 / spread for w, m in zip(self.weights, self.means, strict=True)]
        top = torch.stack(logits).amax(0)
        shares = [torch.exp(logit - top) for logit in logits]
        mean = sum(share * m for share, m in zip(shares, self.means, strict=True)) / sum(shares)
        gap = (y - mean) / spread
        return Prediction(mean + self.v * gap, node.ratio * gap)


@dataclass(frozen=True)
class GaussianData:
    """x0 ~ N(0, v): the law of x_t is known, and the outcome of every linear solver is Gaussian.

    v is far from 0.5, where the leading error of Euler-Maruyama on the VE path happens to vanish.
    """

    schedule: Schedule
    v: float = 0.04

    def node(self, t: float) -> Node:
        """The path at t."""
        return self.schedule(t)

    def node_of_lam(self, lam: float) -> Node:
        """The path where log(alpha / sigma) = lam."""
        return self.schedule(self.schedule.t_of_lam(lam))

    def variance(self, node: Node) -> float:
        """Var x_t."""
        return node.alpha**2 * self.v + node.sigma**2

    def predict(self, x: Tensor, node: Node) -> Prediction:
        """The posterior mean of x0, and eps."""
        var = self.variance(node)
        return Prediction((node.alpha * self.v / var) * x, (node.sigma / var) * x)


class OrthogonalNoise:
    """The k-th draw is sqrt(d) e_k: |z| = sqrt(d), and different draws are orthogonal."""

    def __init__(self, d: int) -> None:
        self.d, self.drawn = d, 0

    def __call__(self, t: Node, s: Node) -> Tensor:
        z = torch.zeros(1, self.d, dtype=torch.float64)
        z[0, self.drawn] = math.sqrt(self.d)
        self.drawn += 1
        return z


def exact_solution(problem: Mixture, x: Tensor, start: Node, end: Node) -> Tensor:
    """The probability-flow ODE's solution, by an eighth-order method in lam at a tolerance of 1e-13."""

    def rhs(
        lam: float, y: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        node = problem.node_of_lam(float(np.clip(lam, start.lam, end.lam)))
        prediction = problem.predict(torch.as_tensor(y) * node.alpha, node)
        return (-node.ratio * prediction.eps).numpy()  # d(x / alpha) / d lam = -ratio eps

    y = (x / start.alpha).flatten().numpy()
    path = solve_ivp(rhs, (start.lam, end.lam), y, method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.as_tensor(path.y[:, -1]).view(x.shape) * end.alpha
