"""Paths, and problems with known exact solutions, on which solvers are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..libraries import library
from ..types.node import Node, Prediction, Rows
from ..types.problem import Problem
from ..types.schedule import Schedule
from ..types.solver import NoiseSource

Array = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Path(Schedule):
    """A Gaussian path for checks: alpha, sigma and their derivatives as functions of t, and the inverse of lam."""

    name: str
    t_min: float
    t_max: float
    numbers: Callable[[float], tuple[float, float, float, float]]
    inverse: Callable[[float], float]

    def t_of_lam(self, lam: float) -> float:
        return self.inverse(lam)

    def __call__(self, t: float) -> Node:
        return Node(t, *self.numbers(t))

    def __str__(self) -> str:
        return self.name


def _vp(t: float) -> tuple[float, float, float, float]:
    alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2 * t))
    return alpha, sigma, -alpha, alpha**2 / sigma


def _ve(t: float) -> tuple[float, float, float, float]:
    return 1.0, math.exp(t), 0.0, math.exp(t)


def _sub_vp(t: float) -> tuple[float, float, float, float]:
    alpha, sigma = math.exp(-t), -math.expm1(-2 * t)
    return alpha, sigma, -alpha, 2 * alpha**2


def _edm(t: float) -> tuple[float, float, float, float]:
    return 1.0, t, 0.0, 1.0


def _rectified_flow(t: float) -> tuple[float, float, float, float]:
    return 1 - t, t, -1.0, 1.0


def _path(
    name: str, numbers: Callable[[float], tuple[float, float, float, float]], t_of_ratio: Callable[[float], float]
) -> Path:
    # from ratio 10 to 0.05, wide enough to cross every scale of the mixture below
    return Path(name, t_of_ratio(0.05), t_of_ratio(10), numbers, lambda lam: t_of_ratio(math.exp(-lam)))


VP = _path("vp", _vp, lambda ratio: 0.5 * math.log1p(ratio**2))
SUB_VP = _path("sub_vp", _sub_vp, lambda ratio: math.asinh(ratio / 2))
VE = _path("ve", _ve, math.log)
EDM = _path("edm", _edm, lambda ratio: ratio)
RECTIFIED_FLOW = _path("rectified_flow", _rectified_flow, lambda ratio: ratio / (1 + ratio))
PATHS: tuple[Schedule, ...] = (VP, SUB_VP, VE, EDM, RECTIFIED_FLOW)


@dataclass(frozen=True)
class Mixture(Problem):
    """Data with law sum_k w_k N(m_k, v) in every coordinate; rows and coordinates are independent."""

    path: Schedule
    means: tuple[float, ...] = (-1.2, 0.3, 1.5)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    v: float = 0.09

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """The posterior means of x0 and eps, and nu = 1/2, as a model with a learned variance predicts."""
        node = node.like(x)
        y, spread = x / node.alpha, self.v + node.ratio**2
        # (K, B, *): a component is a row, and each sum over the rows has one order for any number of samples
        means, logs = _components(self.means, self.weights, x.dtype, x.device, x.dim())
        logits = logs - (y - means) ** 2 * (0.5 / spread)
        shares = torch.exp(logits - logits.amax(0))
        mean = (shares * means).sum(0) / shares.sum(0)
        gap = (y - mean) / spread
        return Prediction(mean + self.v * gap, node.ratio * gap, torch.full_like(x, 0.5))


@lru_cache(maxsize=64)
def _components(
    means: tuple[float, ...], weights: tuple[float, ...], dtype: torch.dtype, device: torch.device, dims: int
) -> tuple[Tensor, Tensor]:
    """The means and the logarithms of the weights, each (K, 1, ..., 1)."""
    with torch.inference_mode(False):  # they are used in every mode
        rows = torch.tensor([means, [math.log(w) for w in weights]], dtype=torch.float64).to(device, dtype)
        found, logs = rows.view(2, -1, *[1] * dims)
    return found, logs


@dataclass(frozen=True)
class GaussianData(Problem):
    """Data with law N(0, v): the law of x_t is known, and the outcome of every linear solver is Gaussian.

    v may be (B, 1), a variance for each row: a leading error that vanishes at one variance is visible at another.
    """

    path: Schedule
    v: Any = 0.04

    def select(self, rows: Rows) -> GaussianData:
        """The problem of some rows."""
        return GaussianData(self.path, self.v[rows]) if isinstance(self.v, Tensor) else self

    def variance(self, node: Node) -> Any:
        """The variance of x_t, a float or (B, 1) like v."""
        return node.alpha**2 * self.v + node.sigma**2

    def predict(self, x: Tensor, node: Any) -> Prediction:
        """The posterior means of x0 and eps, and nu = 1/2."""
        node = node.like(x)
        var = self.variance(node)
        return Prediction((node.alpha * self.v / var) * x, (node.sigma / var) * x, torch.full_like(x, 0.5))


class OrthogonalNoise(NoiseSource):
    """A noise source of orthogonal draws: the k-th draw of a row is sqrt(d) e_k, so |z| = sqrt(d)."""

    def __init__(self, d: int, rows: int = 1) -> None:
        self.d, self.drawn = d, torch.zeros(rows, dtype=torch.long)
        self.rows = torch.arange(rows)

    def __call__(self, t: Node, s: Node) -> Tensor:
        z = torch.zeros(len(self.rows), self.d, dtype=torch.float64)
        z[torch.arange(len(self.rows)), self.drawn[self.rows]] = math.sqrt(self.d)
        self.drawn[self.rows] += 1
        return z

    def select(self, rows: Rows) -> OrthogonalNoise:
        """The noise of some rows; it continues their counts of draws."""
        part = OrthogonalNoise(self.d, 0)
        part.drawn, part.rows = self.drawn, self.rows[rows]
        return part


def exact_solution(problem: Mixture, x: Tensor, start: Node, end: Node) -> Tensor:
    """The probability-flow ODE's solution, by an eighth-order method in lam at a tolerance of 1e-13.

    As x / alpha over sigma / alpha, every path has the same solution, so it is computed once.
    """
    mixture = (problem.means, problem.weights, problem.v)
    y = tuple(round(float(v), 13) for v in (x / start.alpha).flatten())
    ends = (round(start.lam, 13), round(end.lam, 13))
    return torch.tensor(_solution(mixture, y, *ends), dtype=torch.float64).view(x.shape) * end.alpha


@lru_cache(maxsize=64)
def _solution(mixture: tuple[Any, ...], y: tuple[float, ...], start: float, end: float) -> list[float]:
    problem = Mixture(VE, *mixture)

    def rhs(lam: float, y: Array) -> Array:
        ratio = math.exp(-lam)
        slope: Array = (-ratio * problem.predict(torch.as_tensor(y), Node(0.0, 1.0, ratio)).eps).numpy()
        return slope  # d(x / alpha) / d lam = -ratio eps

    path = library("scipy.integrate").solve_ivp(rhs, (start, end), np.array(y), method="DOP853", rtol=1e-13, atol=1e-13)
    return [float(v) for v in path.y[:, -1]]
