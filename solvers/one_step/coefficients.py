"""The phi functions of exponential integrators, and polynomial weights; in float64, without cancellation near h = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
Rows = np.ndarray[tuple[int, int], np.dtype[np.float64]]

# nodes and weights on [0, 1]; 32 points integrate exp(-30 u) times a cubic up to rounding
GAUSS: tuple[Array, Array] = tuple(0.5 * v + 0.5 * (i == 0) for i, v in enumerate(np.polynomial.legendre.leggauss(32)))  # type: ignore[assignment]


def phi1(h: float) -> float:
    """1 - exp(-h), the integral of exp(-(h - u)) over [0, h]."""
    return -math.expm1(-h)


def phi2(h: float) -> float:
    """(exp(-h) - 1) / h + 1, the integral of exp(-(h - u)) u / h over [0, h]; h / 2 - h^2 / 6 + ... near 0.

    >>> phi2(1e-9) == 5e-10 - 1e-18 / 6
    True
    """
    if abs(h) < 0.05:
        term, total = h / 2, 0.0
        for k in range(3, 12):  # sum over k >= 2 of -(-h)^(k-1) / k!
            total += term
            term *= -h / k
        return total
    return 1 - phi1(h) / h


def phi3(h: float) -> float:
    """1/2 - phi2(h) / h, the integral of exp(-(h - u)) u^2 / (2 h^2) over [0, h]; h / 6 - h^2 / 24 + ... near 0."""
    if abs(h) < 0.5:
        term, total = h / 6, 0.0
        for k in range(4, 20):  # sum over k >= 3 of (-h)^(k-2) (-1) / k!
            total += term
            term *= -h / k
        return total
    return 0.5 - phi2(h) / h


def lagrange(at: Sequence[float], points: Array, measure: Array) -> list[float]:
    """The integrals of Lagrange's polynomials over a discrete measure.

    Polynomial i is 1 at ``at[i]`` and 0 at the other nodes; the measure has the weights ``measure`` at ``points``.
    """
    found: list[float] = lagrange_rows(np.array([at]), points[None], measure[None])[0].tolist()
    return found


def lagrange_rows(at: Rows, points: Rows, measure: Rows) -> Rows:
    """``lagrange`` for n sets of K nodes (n, K) and measures (n, G) at once; returns the integrals (n, K)."""
    others = ~np.eye(at.shape[1], dtype=bool)
    scales = np.prod(at[:, :, None] - at[:, None, :], axis=2, where=others)  # (n, j): over k != j
    gaps = points[:, :, None, None] - at[:, None, None, :]  # (n, G, 1, k)
    values = np.prod(np.broadcast_to(gaps, (*points.shape, *others.shape)), axis=3, where=others)
    integrals: Rows = (values * measure[:, :, None]).sum(1) / scales
    return integrals
