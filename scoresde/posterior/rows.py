"""Linear algebra in which every sample of a batch has the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DIVIDED = 2**15  # torch divides the sum of a single row of so many numbers among threads, which rounds differently


def row_sums(x: Tensor) -> Tensor:
    """The sum of each row (B,) of x (B, *); on the CPU, it does not depend on the other rows."""
    flat = x.flatten(1)
    if x.device.type != "cpu" or flat.shape[1] < _DIVIDED or not len(x):
        return flat.sum(1)
    return torch.stack([row.sum() for row in flat])


def rows(value: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) as (B, 1, ..., 1), which multiply ``like`` (B, *)."""
    return value.view(-1, *(1,) * (like.ndim - 1))


def column(value: float | Tensor, like: Tensor) -> Tensor:
    """A number as (1, 1), or one for each sample as (B, 1), in the dtype of ``like``."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """``iterations`` steps of conjugate gradients for M x = b (B, *), each row on its own, from x = 0.

    A row ends where its residual is rounding, and where M is not positive in its direction, as that of an imperfect
    model need not be: it then keeps its x.

    Args:
        product: v (B, *) -> M v (B, *), of which each row depends on that of v alone.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    power = row_sums(b.square())
    going = torch.ones_like(power, dtype=torch.bool)
    least = torch.finfo(b.dtype).eps ** 2 * power
    for _ in range(iterations):
        moved = product(direction)
        curvature = row_sums(direction * moved)
        going = going & (power > least) & (curvature > 0)
        if not bool(going.any()):
            break
        length = torch.where(going, power / torch.where(going, curvature, 1.0), 0.0)
        x = x + rows(length, b) * direction
        residual = residual - rows(length, b) * moved
        last, power = power, torch.where(going, row_sums(residual.square()), power)
        direction = residual + rows(torch.where(going, power / torch.where(going, last, 1.0), 0.0), b) * direction
    return x
