"""Arithmetic on the samples of a batch, in which every sample has the bits that it has alone."""

from __future__ import annotations

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
