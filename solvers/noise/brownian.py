"""Brownian noise: one path per seed, independent of the steps, so that solves on different grids are comparable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..types.node import Node, Rows
from .seeded import SeededNoise

LIMIT = 16.0
"""The path covers lam = log(alpha / sigma) in [-16, 16]."""
DEPTH = 20
"""The tree halves that interval 20 times: its leaves are 3e-5 wide in lam."""


def clock(lower: float, upper: float) -> float:
    """The clock's advance between two values of lam: exp(2 upper) - exp(2 lower), without cancellation."""
    return math.exp(2 * lower) * math.expm1(2 * (upper - lower))


class BrownianNoise(SeededNoise):
    """Normalised increments of one Brownian path per sample: (B(c_s) - B(c_t)) / sqrt(c_s - c_t).

    The path runs on the clock c = exp(2 lam) = alpha^2 / sigma^2. On this clock the exactly integrated noise of the
    reverse SDE (eta = 1) in x / alpha is an increment of the path. The increments of neighbouring intervals compose:
    with z(t, s) for ``noise(t, s)``, sqrt(c_u - c_t) z(t, u) = sqrt(c_s - c_t) z(t, s) + sqrt(c_u - c_s) z(s, u).
    Therefore the same seeds on a finer grid approximate the same solution of the SDE.

    The path is a binary tree over lam in [-16, 16], which is not stored. Every midpoint is drawn conditionally on the
    ends of its interval, with numbers that depend only on the seed and the position in the tree. Only the midpoints
    above the last query are cached: ``DEPTH`` states in float64.

    Outside [-16, 16] the clock stands still. For an interval of zero length on the clock, or within one leaf of the
    tree, the result is a fresh draw, as from ``SeededNoise``. The result for (s, t) is minus that for (t, s). Both ends
    may be nodes with one time per sample.

    Args:
        seeds, shape, dtype, device: as for ``SeededNoise``; ``initial()`` returns the same start, too.
    """

    def __init__(
        self,
        seeds: Iterable[int],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seeds, shape, dtype, device)
        # the tree's numbers: Philox with a key of 128 bits per seed, and the position in the tree as its counter
        keys = [np.random.SeedSequence(int(seed), spawn_key=(2,)).generate_state(2, np.uint64) for seed in self.seeds]
        self._use(keys)

    def _use(self, keys: list[Any]) -> None:
        self._keys = keys
        self._philox = np.random.Philox(0)
        self._state: dict[str, Any] = cast("dict[str, Any]", self._philox.state)
        self._normal = np.random.Generator(self._philox)
        self._middles: list[tuple[int, Tensor]] = [(0, torch.empty(0))] * DEPTH
        self._points: dict[float, Tensor] = {}
        self._far: Tensor | None = None

    def __call__(self, t: Node, s: Node) -> Tensor:
        if isinstance(t.sigma, Tensor) or isinstance(s.sigma, Tensor):
            return self._each(t, s)
        begin, end = (min(max(node.lam, -LIMIT), LIMIT) for node in (t, s))
        if begin == end or _leaf(begin) == _leaf(end):
            return super().__call__(t, s)
        # cache the two points of the last call: the end of one step is the start of the next
        self._points = {lam: self._points[lam] if lam in self._points else self._at(lam) for lam in (begin, end)}
        gap = math.sqrt(clock(min(begin, end), max(begin, end)))
        return ((self._points[end] - self._points[begin]) / gap).to(self.dtype).to(self.device)

    def select(self, rows: Rows) -> BrownianNoise:
        """The noise of the selected samples; fresh draws share the generators of the whole batch."""
        part = super().select(rows)
        chosen = BrownianNoise((), self.shape, self.dtype, self.device)
        chosen.seeds, chosen._steps = part.seeds, part._steps
        chosen._use(self._keys[rows] if isinstance(rows, slice) else [self._keys[i] for i in rows.tolist()])
        return chosen

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

    def _draws(self, place: int) -> Tensor:
        """The standard normal numbers (B, *) of a position in the tree."""
        z = np.empty((len(self._keys), *self.shape), dtype=np.float32)
        state = self._state
        state["state"]["counter"] = np.array([0, place, 0, 0], dtype=np.uint64)
        for row, key in zip(z, self._keys, strict=True):
            state["state"]["key"] = key
            self._philox.state = cast(Any, state)
            self._normal.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(z)

    def _at(self, lam: float) -> Tensor:
        """The path at lam minus the path at -16, (B, *) in float64 on the CPU."""
        left, right = -LIMIT, LIMIT
        if self._far is None:
            self._far = math.sqrt(clock(left, right)) * self._draws(0).double()
        low, high = torch.zeros_like(self._far), self._far
        place = 1
        for level in range(DEPTH):
            middle = 0.5 * (left + right)  # exact: the ends are multiples of a power of two
            if self._middles[level][0] != place:
                self._middles[level] = (place, self._between(low, high, left, middle, right, place))
            value = self._middles[level][1]
            if lam < middle:
                right, high, place = middle, value, 2 * place
            else:
                left, low, place = middle, value, 2 * place + 1
            if lam in (left, right):
                return low if lam == left else high
        return self._between(low, high, left, lam, right, place)

    def _between(self, low: Tensor, high: Tensor, left: float, lam: float, right: float, place: int) -> Tensor:
        """The path at lam given its values at left and right: a Brownian bridge on the clock."""
        before, after, whole = clock(left, lam), clock(lam, right), clock(left, right)
        return torch.lerp(low, high, before / whole).add_(self._draws(place), alpha=math.sqrt(before * after / whole))


def _leaf(lam: float) -> int:
    return math.floor((lam + LIMIT) / (2 * LIMIT) * (1 << DEPTH))
