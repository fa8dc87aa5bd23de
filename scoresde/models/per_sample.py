"""Arithmetic on the samples of a batch, in which every sample has the bits that it has alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_DIVIDED = 2**15  # torch divides the sum of a single row of so many numbers among threads, which rounds differently
_WORK, _ALIGNED = 2**18, 16  # multiplications of one matrix product; its columns are a multiple of so many numbers


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


def products(x: Tensor, matrices: Tensor) -> Tensor:
    """The products (B, *, n) of x (B, *, k) with matrices (*, k, n), of which each row has the bits that it has alone.

    A matrix product rounds differently for another number of rows, and where a row begins at another place between
    multiples of 64 bytes. On the CPU, blocks of rows and of columns are therefore filled up with zeros.
    """
    letters = "ij"[: matrices.ndim - 2]
    rule, n = f"b{letters}k,{letters}kn->b{letters}n", matrices.shape[-1]
    if x.device.type != "cpu" or not len(x):
        return torch.einsum(rule, x, matrices)
    wide = nn.functional.pad(matrices, [0, -n % _ALIGNED]).contiguous()
    count = min(max(2 ** int(math.log2(_WORK / wide.numel())), 16), 64)  # rows of a block
    filled = nn.functional.pad(x, [0, 0] * (x.ndim - 1) + [0, -len(x) % count])
    blocks = torch.split(filled, count) if len(filled) > count else (filled,)
    parts = [_product(block, wide) for block in blocks]
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[: len(x), ..., :n]


def _product(x: Tensor, matrices: Tensor) -> Tensor:
    """The product of one block; by ``bmm`` if there are several matrices, without the overhead of ``einsum``."""
    if matrices.ndim == 3:
        return torch.bmm(x.transpose(0, 1), matrices).transpose(0, 1)
    return x @ matrices if matrices.ndim == 2 else torch.einsum("bijk,ijkn->bijn", x, matrices)
