"""Brownian noise: one path per seed, independent of the steps, so that solves on different grids are comparable."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..types.node import Node
from .counter import block, fill
from .seeded import SeededNoise

LIMIT = 16.0
"""The path covers lam = log(alpha / sigma) in [-16, 16]."""
DEPTH = 16
"""The tree halves that interval 16 times: its leaves are 5e-4 wide in lam, a tenth of a step of a grid of 2048."""


def clock(lower: float, upper: float) -> float:
    """The clock's advance between two values of lam: exp(2 upper) - exp(2 lower), without cancellation."""
    return math.exp(2 * lower) * math.expm1(2 * (upper - lower))


class BrownianNoise(SeededNoise):
    """Normalised increments of one Brownian path per sample: (B(c_s) - B(c_t)) / sqrt(c_s - c_t).

    The path runs on the clock c = exp(2 lam) = alpha^2 / sigma^2. On this clock the exactly integrated noise of the
    reverse SDE (eta = 1) in x / alpha is an increment of the path. The increments of neighbouring intervals compose:
    with z(t, s) for ``noise(t, s)``, sqrt(c_u - c_t) z(t, u) = sqrt(c_s - c_t) z(t, s) + sqrt(c_u - c_s) z(s, u).
    Therefore the same seeds on a finer grid approximate the same solution of the SDE.

    The path is a binary tree over lam in [-16, 16]. Every midpoint is drawn conditionally on the ends of its interval,
    with numbers that depend only on the seed and the position in the tree. An increment is thus a sum of at most
    2 (``DEPTH`` + 2) of these numbers, with weights whose squares add up to 1. Only the numbers above the end of
    the last interval are stored.

    Outside [-16, 16] the clock stands still. For an interval of zero length on the clock, or within one leaf of the
    tree, the result is a fresh draw, as from ``SeededNoise``. The result for (s, t) is minus that for (t, s). Both ends
    may be nodes with one time per sample.

    Args:
        seeds, shape, dtype, device: as for ``SeededNoise``; ``initial()`` returns the same start, too.
    """

    def _forget(self) -> None:
        super()._forget()
        self._tree: dict[int, Tensor] = {}  # the numbers (B, *) at positions of the tree

    def __call__(self, t: Node, s: Node) -> Tensor:
        if isinstance(t.sigma, Tensor) or isinstance(s.sigma, Tensor):
            return self._each(t, s)
        begin, end = (min(max(node.lam, -LIMIT), LIMIT) for node in (t, s))
        leaves = (_leaf(begin), _leaf(end))
        if begin == end or leaves[0] == leaves[1]:
            return super().__call__(t, s)
        self._grow(leaves)
        gap = math.sqrt(clock(min(begin, end), max(begin, end)))
        weights = dict.fromkeys(_above(leaves[0]), 0.0)
        for lam, leaf, sign in ((begin, leaves[0], -1), (end, leaves[1], 1)):
            for place, weight in zip(_above(leaf), _weights(lam, leaf), strict=True):
                weights[place] = weights.get(place, 0.0) + sign * weight
        total = torch.zeros_like(self._tree[0])
        for place in sorted(weights):  # in an order that does not depend on the direction
            total.add_(self._tree[place], alpha=weights[place] / gap)
        self._tree = {place: self._tree[place] for place in _above(leaves[1])}  # where the next interval begins
        return self._shaped(total[None])[0]

    def _grow(self, leaves: tuple[int, int]) -> None:
        """Makes the missing numbers above two leaves."""
        for leaf in leaves:
            # the missing positions are the lowest ones: leaf, leaf / 2, ...; several at a time, where they are small
            missing = sum(place not in self._tree for place in _above(leaf))
            size = max(1, block(self.device) // (4 * max(1, len(self.seeds) * self.size)))
            for low in range(0, missing, size):
                count = min(size, missing - low)
                levels = torch.arange(low, low + count, dtype=torch.int32, device=self.device)
                places = torch.full_like(levels, leaf) >> levels
                numbers = fill(self._room(count), self._keys[2:], places)
                self._tree.update((leaf >> (low + i), numbers[i]) for i in range(count))

    def _each(self, t: Node[Any], s: Node[Any]) -> Tensor:
        """The increments (B, *) for nodes with one time per sample."""
        count = len(self.seeds)
        ends = [
            [torch.as_tensor(v, dtype=torch.float64).expand(count).tolist() for v in (n.t, n.alpha, n.sigma)]
            for n in (t, s)
        ]
        nodes = [[Node(*numbers) for numbers in zip(*end, strict=True)] for end in ends]
        rows = (self.select(slice(i, i + 1))(nodes[0][i], nodes[1][i]) for i in range(count))
        return torch.cat([torch.empty((0, *self.shape), dtype=self.dtype, device=self.device), *rows])


def _leaf(lam: float) -> int:
    """The position of the leaf that contains lam. The root is 1, and below position p are 2 p and 2 p + 1."""
    return (1 << DEPTH) + min(math.floor((lam + LIMIT) / (2 * LIMIT) * (1 << DEPTH)), (1 << DEPTH) - 1)


def _above(leaf: int) -> list[int]:
    """The positions whose numbers a path value in a leaf depends on: the leaf, its parents, and 0 for the far end."""
    return [leaf >> level for level in range(DEPTH + 2)]


def _weights(lam: float, leaf: int) -> list[float]:
    """The path at lam, minus that at -16, as weights of the numbers of ``_above``.

    From the leaf upwards: the value is a weighted mean of those at the ends of an interval plus a number of its own (a
    Brownian bridge on the clock), and one of the ends is the midpoint of the interval above.
    """
    width = 2 * LIMIT / (1 << DEPTH)
    left = -LIMIT + (leaf - (1 << DEPTH)) * width
    lam = min(max(lam, left), left + width)  # rounding may have moved it into the next leaf
    before, after, whole = clock(left, lam), clock(lam, left + width), clock(left, left + width)
    found, low, high = [math.sqrt(before * after / whole)], after / whole, before / whole
    for share, scale in _bridges():
        if leaf & 1:  # the right half: its low end is the midpoint
            left -= width
            weight, low, high = low, low * (1 - share), high + low * share
        else:
            weight, low, high = high, low + high * (1 - share), high * share
        found.append(weight * scale * math.exp(left))
        leaf, width = leaf >> 1, 2 * width
    return [*found, high * math.sqrt(clock(-LIMIT, LIMIT))]


@cache
def _bridges() -> list[tuple[float, float]]:
    """For the intervals of each level, from the leaves' parents up: the share of the upper end in the mean of their
    midpoint, and the midpoint's deviation over exp(lam of the lower end)."""
    halves = [LIMIT / (1 << level) for level in range(DEPTH - 1, -1, -1)]
    return [(1 / (1 + math.exp(2 * half)), math.sqrt(clock(0, half) / (1 + math.exp(-2 * half)))) for half in halves]
