"""phi functions of exponential integrators, in float64 and without cancellation near h = 0."""

from __future__ import annotations

import math


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
