"""Gotta Go Fast: per-sample steps on the reverse SDE dx = (f x - g^2 score) dt + g dw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry.ranges import AnyPositive, Count, Share
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, as_source, solvers
from .base import Adaptive, Attempt, Progress, column


class Increments:
    """The increments of one sample's Brownian motion that are drawn so far.

    A rejected step has already drawn the increment over its interval. This increment is kept, and a shorter step takes
    its part of it by a Brownian bridge. Given the increment w over an interval of length l, the first share q of the
    interval has the increment q w + sqrt(q (1 - q) l) z (Rackauckas and Nie 2017, DCDS-B 22(7), rejection sampling with
    memory). Fresh draws would bias the motion towards increments of small estimated error.

    Args:
        draw: the source of normalised increments (1, *). The intervals do not overlap; the bridge draws over intervals
            of zero length.
    """

    def __init__(self, draw: Callable[[Node, Node], Tensor]) -> None:
        self.draw = draw
        self.seen: list[tuple[Node, Tensor]] = []  # (end, increment) of the intervals that follow, one after the other
        self.used: list[tuple[Node, Tensor]] = []

    def take(self, t: Node, s: Node, dtype: torch.dtype) -> Tensor:
        """The increment (1, *) from t, the present end of the motion, to s."""
        self.used, at = [], t
        while at.t != s.t:
            if not self.seen:
                self.seen = [(s, math.sqrt(abs(s.t - at.t)) * self.draw(at, s).to(dtype))]
            end, w = self.seen.pop(0)
            if abs(end.t - t.t) > abs(s.t - t.t):
                share = (s.t - at.t) / (end.t - at.t)
                part = share * w + math.sqrt(share * abs(end.t - s.t)) * self.draw(s, s).to(dtype)
                self.seen.insert(0, (end, w - part))
                end, w = s, part
            self.used.append((end, w))
            at = end
        return torch.stack([w for _, w in self.used]).sum(0)

    def settle(self, accepted: bool) -> None:
        """Drops the increment that was taken if the step is accepted; otherwise keeps it for the next attempt."""
        self.seen = self.seen if accepted else self.used + self.seen
        self.used = []


@solvers.register(
    "gotta_go_fast",
    aliases=("ggf",),
    kind="adaptive SDE",
    order=2,
    stochastic=True,
    nonlinear="it chooses each sample's steps from the error that it estimates",
    adaptive=True,
    evaluations=2,
    reference="Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, algorithm 1; the motion after a rejection: "
    "Rackauckas and Nie 2017, DCDS-B 22(7)",
    formula="x' = x + b(x, t) (s - t) + g_t w, x'' = x + b(x', s) (s - t) + g_s w, x_s = (x' + x'') / 2",
    native="score",
    note="an inner step after a rejection takes one evaluation less",
)
@dataclass(frozen=True)
class GottaGoFast(Adaptive):
    """Gotta Go Fast: stochastic improved Euler on the reverse SDE, each sample with its own steps in t.

    Both estimates of a step use the same increment w. x' is Euler-Maruyama's result; x'' is the same with drift and
    diffusion at (x', s). The solve continues from their mean (``extrapolate``) or from x'. E is the root mean square of
    (x' - mean) / max(atol, rtol max(|x'|, |x' of the last accepted step|)). A step is accepted where E <= 1. After
    every step h becomes safety h E^-exponent. ``first_step`` is in t; the default is a hundredth of the first interval.

    With ``extrapolate`` the weak order is 2 (measured), otherwise 1.
    """

    rtol: AnyPositive = 0.01
    atol: AnyPositive = 0.0078
    first_step: AnyPositive | None = None
    max_steps: Count = 10000
    safety: Share = 0.9
    exponent: Share = 0.9
    extrapolate: bool = True

    @property
    def order(self) -> float:
        return 2.0 if self.extrapolate else 1.0

    def clock(self, node: Node) -> float:
        return node.t

    def nodes_at(self, problem: Problem, values: Sequence[float]) -> list[Node]:
        return [problem.node(value) for value in values]

    def automatic(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> list[float]:
        return [0.01 * abs(s.t - t.t)] * len(x)

    def noise_of(self, noise: Noise | None, i: int, count: int) -> Increments:
        assert noise is not None
        return Increments(as_source(noise).select(slice(i, i + 1)))

    def tolerance(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.clamp(self.rtol * torch.maximum(before.abs(), after.abs()), min=self.atol)

    def attempt(
        self,
        problem: Problem,
        x: Tensor,
        slope: Tensor,
        samples: Sequence[Progress],
        ends: Sequence[Node],
        dtype: torch.dtype,
    ) -> Attempt:
        starts = [sample.node for sample in samples]
        w = torch.cat([sample.noise.take(sample.node, end, x.dtype) for sample, end in zip(samples, ends, strict=True)])
        dt = column([end.t - start.t for start, end in zip(starts, ends, strict=True)], x)
        euler = x + dt * _drift(x, slope, starts) + _diffusion(x, starts) * w
        eps = self.ask(problem, euler, ends, dtype)
        other = x + dt * _drift(euler, eps, ends) + _diffusion(x, ends) * w
        mean = 0.5 * (euler + other)
        return Attempt(mean if self.extrapolate else euler, euler - mean, euler)

    def control(self, errors: tuple[float, ...], sample: Progress) -> tuple[bool, float]:
        return errors[0] <= 1, self.safety * errors[0] ** -self.exponent


def _drift(x: Tensor, eps: Tensor, nodes: Sequence[Node]) -> Tensor:
    """f x - g^2 score, with score = -eps / sigma."""
    return column([n.f for n in nodes], x) * x + column([n.g2 / n.sigma for n in nodes], x) * eps


def _diffusion(x: Tensor, nodes: Sequence[Node]) -> Tensor:
    return column([math.sqrt(max(n.g2, 0.0)) for n in nodes], x)
