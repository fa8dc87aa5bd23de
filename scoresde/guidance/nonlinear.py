"""Guidance that is not linear in the predictions: it acts on x0, and eps follows.

Published forms act on a network's own output, so that their results depend on what that is, by 20 to 190 % in x0. These
act on x0 for every network; ``zero_star`` acts on the path's velocity, for which it was derived.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from solvers import InputError, Node, Prediction, Solver
from solvers.registry.ranges import AnyPositive, Fraction, Range, Share

from ..models.per_sample import row_sums, rows
from .base import CONDITION, NULL, Ask, Guidance, Interval, finite, guidances
from .linear import CFG


class Around(Guidance):
    """A rule that changes the x0 of another one, ``inner``."""

    inner: Guidance

    @property
    def roles(self) -> tuple[str, ...]:
        return self.inner.roles

    @property
    def edges(self) -> tuple[float, ...]:
        return self.inner.edges

    def asked(self, ratio: float) -> tuple[str, ...]:
        return self.inner.asked(ratio)

    def phase(self, ratio: float) -> Hashable:
        return self.inner.phase(ratio)

    def on(self, nodes: Sequence[Node]) -> Guidance:
        given: Any = self
        inner = self.inner.on(nodes)
        return self if inner is self.inner else replace(given, inner=inner)

    def check_solver(self, solver: Solver) -> None:
        self.inner.check_solver(solver)


@guidances.register(
    "rescale", kind="nonlinear", formula="(1 - phi) g + phi g std(c) / std(g)", evaluations=2,
    reference="Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16", note="of x0; published for the network's output",
)  # fmt: skip
@dataclass(frozen=True)
class Rescale(Around):
    """Another guidance, scaled towards the deviation of the conditional prediction, for each sample.

    Attributes:
        phi: the share of the scaled prediction.
    """

    inner: Guidance = field(default_factory=CFG)
    phi: Fraction = 0.7

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([CONDITION, *self.inner.roles]))

    def asked(self, ratio: float) -> tuple[str, ...]:
        return tuple(dict.fromkeys([CONDITION, *self.inner.asked(ratio)]))

    def x0(self, ask: Ask, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        c, g = ask(CONDITION).x0, self.inner.x0(ask, x, node, ratio)
        if g is c:
            return g
        wide = _deviation(g)
        factor = torch.where(wide > 0, _deviation(c) / torch.where(wide > 0, wide, 1.0), 1.0)
        return (1 - self.phi + self.phi * factor) * g


@guidances.register(
    "threshold", kind="nonlinear", formula="clamp(g, -q, q) / q, q = max(1, quantile of |g|)", evaluations=2,
    reference="Saharia et al. 2022, arXiv:2205.11487, section 2.3", note="for data in [-1, 1]",
)  # fmt: skip
@dataclass(frozen=True)
class Threshold(Around):
    """Another guidance, whose x0 is brought back to [-1, 1] where it leaves that, for each sample."""

    inner: Guidance = field(default_factory=CFG)
    quantile: Share = 0.995

    def x0(self, ask: Ask, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        g = self.inner.x0(ask, x, node, ratio)
        sizes = g.abs().flatten(1).to(torch.promote_types(g.dtype, torch.float32))
        q = rows(torch.quantile(sizes, self.quantile, dim=1).clamp_min(1.0).to(g), g)
        return g.clamp(-q, q) / q


@dataclass(frozen=True)
class Pair(Interval):
    """A rule of the conditional and the unconditional prediction, with one scale.

    Attributes:
        scale: s; 1 is the conditional prediction.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "scale")

    @property
    def roles(self) -> tuple[str, ...]:
        return (CONDITION,) if self.scale == 1 else (CONDITION, NULL)

    def asked(self, ratio: float) -> tuple[str, ...]:
        return self.roles if self.acts(ratio) else (CONDITION,)

    def x0(self, ask: Ask, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        if not self.acts(ratio) or self.scale == 1:
            return ask(CONDITION).x0
        return self.combined(ask(CONDITION), ask(NULL), x, node, ratio)

    def combined(self, c: Prediction, u: Prediction, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        """The x0 (B, *) inside the interval, from the predictions with the conditions and without."""
        raise NotImplementedError


@guidances.register(
    "apg", kind="nonlinear", formula="c + (s - 1) (d_perp + eta d_par), d = c - u", evaluations=2,
    reference="Sadat et al. 2024, arXiv:2410.02416, algorithm 1", note="on x0, with d projected on c",
)  # fmt: skip
@dataclass(frozen=True)
class APG(Pair):
    """Adaptive projected guidance: the part of c - u along c is scaled by eta, and its length limited to ``radius``.

    With ``momentum`` beta, d is d + beta times that of the step before.
    """

    eta: float = 0.0
    radius: AnyPositive = math.inf
    momentum: Annotated[float, Range(-1, 1, "()")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        finite(self, "eta")

    def combined(self, c: Prediction, u: Prediction, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        d = self._remembered(c.x0 - u.x0, ratio)
        if math.isfinite(self.radius):
            d = (self.radius / rows(row_sums(d * d), d).clamp_min(self.radius**2).sqrt()) * d
        along = _share(d, c.x0) * c.x0
        return c.x0 + (self.scale - 1) * ((d - along) + self.eta * along)

    def _remembered(self, d: Tensor, ratio: float) -> Tensor:
        """d at a noise level with the momentum of the steps before."""
        return d

    def on(self, nodes: Sequence[Node]) -> Guidance:
        if self.momentum == 0:
            return self
        return APGInSolve(
            self.scale, self.eta, self.radius, self.momentum, interval=self.interval, start=nodes[0].ratio
        )

    def check_solver(self, solver: Solver) -> None:
        if self.momentum == 0:
            return
        if solver.adaptive or solver.parallel or solver.evaluations > 1 or not solver.restartable:
            raise InputError(
                f"apg: momentum={self.momentum:g} counts steps, so it needs a solver of one evaluation a step and no "
                f"memory, such as ddim; {solver} would use it out of order"
            )


@dataclass(frozen=True)
class APGInSolve(APG):
    """APG with momentum in one solve: it remembers the difference of the last step, and nothing at ``start``."""

    start: float = math.inf
    memory: list[Tensor] = field(default_factory=list, compare=False)

    def _remembered(self, d: Tensor, ratio: float) -> Tensor:
        if self.memory and ratio != self.start:
            d = d + self.momentum * self.memory[0]
        self.memory[:] = [d]
        return d


@guidances.register(
    "zero_star", kind="nonlinear", formula="k v_u + s (v_c - k v_u), k = <v_c, v_u> / |v_u|^2", evaluations=2,
    reference="Fan et al. 2025, arXiv:2503.18886, algorithm 1", note="for flows; the first step has no velocity",
)  # fmt: skip
@dataclass(frozen=True)
class ZeroStar(Pair):
    """CFG-Zero*: on velocities, with the unconditional one scaled to the conditional one, for each sample.

    The velocity is 0 in the first ``zero_init`` steps from noise, where nothing is evaluated.
    """

    zero_init: Annotated[int, Range(0)] = 1

    def combined(self, c: Prediction, u: Prediction, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        wide: Any = node.like(x)
        conditional, other = c.velocity(wide), u.velocity(wide)
        scaled = _share(conditional, other) * other
        return _x0_of(scaled + self.scale * (conditional - scaled), x, wide)

    def on(self, nodes: Sequence[Node]) -> Guidance:
        if self.zero_init == 0:
            return self
        ratios = sorted((node.ratio for node in nodes), reverse=True)
        start = ratios[min(self.zero_init, len(ratios) - 1)]
        return ZeroStarInSolve(self.scale, self.zero_init, start, interval=self.interval)

    def check_solver(self, solver: Solver) -> None:
        if solver.adaptive and self.zero_init:
            raise InputError(
                f"zero_star: zero_init={self.zero_init} counts steps, but {solver} chooses its own; set zero_init=0"
            )


@dataclass(frozen=True)
class ZeroStarInSolve(ZeroStar):
    """CFG-Zero* in a solve: the velocity is 0 above the noise level ``start``."""

    start: float = math.inf

    @property
    def edges(self) -> tuple[float, ...]:
        return (*super().edges, *((self.start,) if self.start > 0 else ()))

    def phase(self, ratio: float) -> Hashable:
        return (super().phase(ratio), ratio > self.start)

    def asked(self, ratio: float) -> tuple[str, ...]:
        return () if ratio > self.start else super().asked(ratio)

    def x0(self, ask: Ask, x: Tensor, node: Node | Node[Tensor], ratio: float) -> Tensor:
        if ratio <= self.start:
            return super().x0(ask, x, node, ratio)
        return _x0_of(torch.zeros_like(x), x, node.like(x))


def _x0_of(velocity: Tensor, x: Tensor, wide: Any) -> Tensor:
    """x0 from the path's velocity alpha' x0 + sigma' eps at x = alpha x0 + sigma eps."""
    scale = wide.alpha * wide.dsigma - wide.dalpha * wide.sigma
    found: Tensor = (wide.dsigma * x - wide.sigma * velocity) / scale
    return found


def _share(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / |y|^2 of each sample of x and y (B, *), as (B, 1, ..., 1); 0 where y is 0."""
    square = row_sums(y * y)
    return rows(torch.where(square > 0, row_sums(x * y) / torch.where(square > 0, square, 1.0), 0.0), y)


def _deviation(x: Tensor) -> Tensor:
    """The deviation of each sample of x (B, *) over its numbers, as (B, 1, ..., 1)."""
    gaps = x - rows(row_sums(x) / x[0].numel(), x)
    return rows((row_sums(gaps * gaps) / x[0].numel()).sqrt(), x)
