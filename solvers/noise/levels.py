"""Standard normal numbers as a function of a sample's key and a noise level, for noise that a model itself adds.

Such a model is a function of the state, the node and the keys: it keeps nothing from one evaluation to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .brownian import DEPTH, LIMIT, _above, _leaf, _weights, clock
from .counter import block, fill, keys_of, room

_STREAM = 0x434F4E44  # apart from the numbers that the same seeds give a solve


def level_keys(seeds: Sequence[int]) -> Tensor:
    """The keys (B, 2) of integers of at least 0, int32; a row depends on its seed alone."""
    return keys_of([seed << 64 | _STREAM for seed in seeds])[:2].T.contiguous()


def fresh_numbers(keys: Tensor, levels: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers (B, size), independent between levels that differ in float32.

    Args:
        keys: (B, 2), see ``level_keys``, on the device of the numbers.
        levels: float64 on the CPU, one for all samples (1,) or one for each (B,).
    """
    draws = levels.float().view(torch.int32).to(keys.device)
    return _filled(keys, draws[None] if len(draws) > 1 else draws, size, dtype)[0].to(dtype)


def path_numbers(keys: Tensor, levels: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """W(r^2) / r (B, size) at levels r, where each sample has one Brownian path W for all levels; standard normal.

    With c = 1 / r^2 this is B(c) / sqrt(c), where B is the Brownian path of ``BrownianNoise``'s tree. Levels outside
    of e^-16 to e^16 get the numbers at these ends.

    Args:
        keys, levels: see ``fresh_numbers``.
    """
    least = -LIMIT + 2 * LIMIT / (1 << DEPTH)  # at -LIMIT the path is 0
    lams = [min(max(-math.log(max(r, 1e-300)), least), LIMIT) for r in levels.tolist()]
    leaves = [_leaf(lam) for lam in lams]
    places = torch.tensor([_above(leaf) for leaf in leaves], dtype=torch.int32, device=keys.device).T
    rows = [_unit_weights(lam, leaf) for lam, leaf in zip(lams, leaves, strict=True)]
    weights = torch.tensor(rows, dtype=torch.float64).T.to(keys.device)
    total, count = torch.zeros(1), max(1, block(keys.device) // (4 * max(1, len(keys) * size)))
    for k in range(0, len(places), count):
        part = slice(k, k + count)
        draws = places[part] if len(lams) > 1 else places[part, 0]
        numbers = _filled(keys, draws, size, dtype)
        total = total.to(numbers) + (weights[part, :, None].to(numbers) * numbers).sum(0)
    return total.to(dtype)


def _unit_weights(lam: float, leaf: int) -> list[float]:
    """The path at lam, divided by its deviation, as weights of the numbers at ``_above(leaf)``."""
    scale = math.sqrt(clock(-LIMIT, lam))
    return [w / scale for w in _weights(lam, leaf)]


def _filled(keys: Tensor, draws: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The numbers (K, B, size) of draws, in at least float32."""
    out = fill(room(len(draws), len(keys), size, dtype, keys.device), keys.T, draws)
    return out.flatten(2)[:, :, :size]
