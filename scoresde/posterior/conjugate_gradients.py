"""Conjugate gradients, for each sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.per_sample import row_sums, rows

ROUNDING = 0.01  # of the smallest eigenvalue: far above that of float32, far below what a wrong model does


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, smallest: float = 0.0
) -> Tensor:
    """``iterations`` steps of conjugate gradients for M x = b (B, *), each row on its own, from x = 0.

    A row ends where its residual is rounding, and where v . M v is below what every M in question has, which shows that
    the M of an imperfect model is none of them: it then keeps its x. Without that, x would be many times too long.

    Args:
        product: v (B, *) -> M v (B, *), of which each row depends on that of v alone.
        smallest: no eigenvalue of M should be below this number.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    power = row_sums(b.square())
    going = torch.ones_like(power, dtype=torch.bool)
    least = torch.finfo(b.dtype).eps ** 2 * power
    for _ in range(iterations):
        moved = product(direction)
        curvature = row_sums(direction * moved)
        floor = (1 - ROUNDING) * smallest * row_sums(direction.square())
        going = going & (power > least) & (curvature > floor)
        if not bool(going.any()):
            break
        length = torch.where(going, power / torch.where(going, curvature, 1.0), 0.0)
        x = x + rows(length, b) * direction
        residual = residual - rows(length, b) * moved
        last, power = power, torch.where(going, row_sums(residual.square()), power)
        direction = residual + rows(torch.where(going, power / torch.where(going, last, 1.0), 0.0), b) * direction
    return x
