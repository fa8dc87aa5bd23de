"""Exponential Runge-Kutta methods: they solve the linear part exactly and interpolate the prediction inside the step.

Let h = lam_s - lam_t, let p_j be predictions of one kind at t and at inner nodes lam_t + c_j h, and let w_j be weights
from the phi functions (``coefficients``). The state at a node q is

    x0:   x_q / alpha_q = e^-H x / alpha_t + sum_j w_j(H) x0_j + noise,        H = (1 + eta^2) (lam_q - lam_t)
    eps:  x_q / alpha_q = x / alpha_t + (1 + eta^2) ratio_q sum_j w_j(H) eps_j + noise,      H = lam_t - lam_q

The noise at q is the exactly integrated noise of the SDE over [t, q]. It is the sum of the increments between the
nodes, so that a stage and the end of the step use one Brownian path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..registry.ranges import NonNegative
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .coefficients import phi1, phi2, phi3

Kind = Literal["x0", "eps"]
Variant = Literal["dpmsolver", "taylor"]
Weights = tuple[float, ...]


def lagrange_weights(order: int, fractions: Sequence[float], big: float, variant: str) -> Weights:
    """Weights of ``order`` predictions, at t and at ``fractions`` of the step, for H = ``big``.

    Let D_j = (p_j - p_0) / fraction_j. Order 2 adds phi1 / 2 (``dpmsolver``) or phi2 (``taylor``) times D_1. Order 3
    adds phi2 D_2 (``dpmsolver``) or the parabola's phi2 D' + phi3 D'' (``taylor``). Both have order 3 at
    fraction_2 = 2/3. ``flipped`` is ``taylor`` with the wrong sign of the constant 1/2 in
    phi3 = 1/2 - 1 / H + (1 - e^-H) / H^2.
    """
    one, two = phi1(big), phi2(big)
    three = phi3(big) - (variant == "flipped")
    if order == 1:
        return (one,)
    if order == 2:
        weight = (one / 2 if variant == "dpmsolver" else two) / fractions[0]
        return one - weight, weight
    r1, r2 = fractions
    if variant == "dpmsolver":
        return one - two / r2, 0.0, two / r2
    first = (two * r2 - 2 * three) / (r2 - r1) / r1  # D' = (r2 D_1 - r1 D_2) / (r2 - r1)
    second = (2 * three - two * r1) / (r2 - r1) / r2  # D'' = 2 (D_2 - D_1) / (r2 - r1)
    return one - first - second, first, second


@dataclass(frozen=True)
class Scheme:
    """The numbers of a method.

    Attributes:
        kind: the prediction that the method interpolates.
        fractions: the positions of the stages after the first, as fractions of the step in lam.
        rows: a function of H that returns the weights of every stage after the first, then those of the end.
        joint: whether the stages and the end use one Brownian path; otherwise each draws its noise independently.
    """

    kind: Kind
    fractions: tuple[float, ...]
    rows: Callable[[float], tuple[Weights, ...]]
    eta: float = 0.0
    s_noise: float = 1.0
    joint: bool = True

    def rate(self) -> float:
        """The ratio H / h."""
        return 1 + self.eta**2 if self.kind == "x0" else -1.0

    def of(self, prediction: Prediction) -> Tensor:
        """The part of a prediction that the method interpolates."""
        return prediction.x0 if self.kind == "x0" else prediction.eps

    def move(self, x: Tensor, t: Node, q: Node, weights: Sequence[float], predictions: Sequence[Tensor]) -> Tensor:
        """The state at q without its noise."""
        if self.kind == "x0":
            keep, scale = q.sigma / t.sigma * math.exp(-(self.eta**2) * (q.lam - t.lam)), q.alpha
        else:
            keep, scale = q.alpha / t.alpha, (1 + self.eta**2) * q.sigma
        x = keep * x
        for weight, prediction in zip(weights, predictions, strict=True):
            if weight:
                x = x + (scale * weight) * prediction
        return x

    def noise(self, a: Node, b: Node, q: Node) -> float:
        """The weight of the normalised increment from a to b in the state at q."""
        if self.kind == "x0":
            fresh = -math.expm1(-2 * self.eta**2 * (b.lam - a.lam))
            return self.s_noise * q.sigma * math.exp(-(self.eta**2) * (q.lam - b.lam)) * math.sqrt(fresh)
        return self.s_noise * self.eta * q.alpha * math.sqrt((a.ratio - b.ratio) * (a.ratio + b.ratio))


class Group(NamedTuple):
    """The carry in ``mode="grid"``.

    It contains the orders of the remaining intervals, and the current group: its first state, its nodes and their
    predictions.
    """

    plan: tuple[int, ...]
    x: Tensor | None = None
    nodes: tuple[Node, ...] = ()
    predictions: tuple[Tensor, ...] = ()


class ExponentialRungeKutta(Solver):
    """An exponential Runge-Kutta method; a subclass states its ``scheme``.

    In ``mode="grid"`` the stages are the grid's own nodes, at one evaluation per interval. The grid is divided into
    groups of p intervals, where p is the number of stages. The k-th interval of a group steps from the group's start
    with the k predictions made so far. At the end, intervals that do not fill a group use lower orders; so does the
    last group with ``lower_order_final``, or if the grid ends at sigma = 0.

    If a hook replaces a state inside a group, only the predictions change, not the group's start. With eta > 0 each
    interval draws fresh noise for the whole distance from the group's start, independent of the other intervals: weak
    order 1.
    """

    mode: str = "singlestep"
    variant: str = "dpmsolver"
    lower_order_final: bool = False
    eta: NonNegative = 0.0

    def scheme(self) -> Scheme:
        """The numbers of the method."""
        raise NotImplementedError

    @property
    def stochastic(self) -> bool:
        return self.scheme().eta > 0

    @property
    def evaluations(self) -> int:
        return 1 if self.mode == "grid" else 1 + len(self.scheme().fractions)

    @property
    def nominal_order(self) -> float:
        return float(solvers.info_of(self).order or 0)

    @property
    def order(self) -> float:
        return min(self.nominal_order, 1 if self.stochastic else 2) if self.mode == "grid" else self.nominal_order

    @property
    def plans_grid(self) -> bool:
        return self.mode == "grid"

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Group | None:
        if self.mode != "grid":
            return None
        cut = self.lower_order_final or nodes[-1].clean
        return Group(orders(1 + len(self.scheme().fractions), len(nodes) - 1, cut))

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        first = problem.predict(x, t)
        if carry is None:
            return Step(self.advance(problem, x, t, s, first, noise))
        return self._interval(x, t, s, carry, first, noise)

    def advance(
        self, problem: Problem, x: Tensor, t: Node, s: Node, first: Prediction, noise: Noise | None = None
    ) -> Tensor:
        """The state (B, *) at s from x (B, *) at t and the prediction at t, for sigma_s > 0."""
        scheme = self.scheme()
        h = s.lam - t.lam
        places = [*(problem.node_of_lam(t.lam + c * h) if c != 1 else s for c in scheme.fractions), s]
        predictions, draws, before = [scheme.of(first)], [], t
        for node, weights in zip(places, scheme.rows(scheme.rate() * h), strict=True):
            x_node = scheme.move(x, t, node, weights, predictions)
            if scheme.eta and node is not before:
                assert noise is not None
                draws.append((before, node, noise(before, node)))
                before = node
            for a, b, z in draws if scheme.joint else [(t, node, draws[-1][2])]:
                x_node = x_node + scheme.noise(a, b, node) * z
            if len(predictions) == len(places):
                break
            predictions.append(scheme.of(problem.predict(x_node, node)))
        return x_node

    def _interval(self, x: Tensor, t: Node, s: Node, group: Group, first: Prediction, noise: Noise | None) -> Step:
        scheme = self.scheme()
        order = group.plan[0]
        if order == 1 or group.x is None:
            group = Group(group.plan, x)
        group = Group(group.plan[1:], group.x, (*group.nodes, t), (*group.predictions, scheme.of(first)))
        assert group.x is not None
        start, h = group.nodes[0], s.lam - group.nodes[0].lam
        fractions = [(node.lam - start.lam) / h for node in group.nodes[1:]]
        last = not group.plan or group.plan[0] == 1
        weights = lagrange_weights(order, fractions, scheme.rate() * h, self.grid_variant(last))
        moved = scheme.move(group.x, start, s, weights, group.predictions)
        if scheme.eta:
            assert noise is not None
            moved = moved + scheme.noise(start, s, s) * noise(t, s)
        return Step(moved, group)

    def grid_variant(self, last: bool) -> str:
        """The variant of the weights for an interval; ``last`` is whether the interval is the last of its group."""
        return self.variant


def orders(order: int, intervals: int, lower_order_final: bool) -> tuple[int, ...]:
    """The order of every interval of a grid that is divided into groups of ``order`` intervals.

    >>> orders(3, 7, False), orders(3, 6, False), orders(3, 6, True)
    ((1, 2, 3, 1, 2, 3, 1), (1, 2, 3, 1, 2, 3), (1, 2, 3, 1, 2, 1))
    """
    whole, rest = divmod(intervals, order)
    if rest == 0 and lower_order_final and order > 1:
        return (*range(1, order + 1),) * (whole - 1) + (*range(1, order), 1)
    return (*range(1, order + 1),) * whole + (*range(1, rest + 1),)


def check_ordered(solver: Solver, first: str, second: str) -> None:
    """Rejects stages that are not in increasing order.

    Raises:
        InputError: option ``first`` is not less than option ``second``; the message has both values.
    """
    low, high = getattr(solver, first), getattr(solver, second)
    if not low < high:
        name = solvers.info_of(solver).name
        raise InputError(f"{name}: {first} must be less than {second}, got {low:g}, {high:g}")


def one_stage(kind: Kind, **options: Any) -> Scheme:
    """The scheme with one prediction, constant over the step."""
    return Scheme(kind, (), lambda big: ((phi1(big),),), **options)


def two_stages(kind: Kind, r1: float, variant: str = "dpmsolver", **options: Any) -> Scheme:
    """The scheme with a stage at r1, reached with one prediction."""

    def rows(big: float) -> tuple[Weights, ...]:
        return (phi1(r1 * big),), lagrange_weights(2, (r1,), big, variant)

    return Scheme(kind, (r1,), rows, **options)


def three_stages(kind: Kind, r1: float, r2: float, variant: str = "dpmsolver", **options: Any) -> Scheme:
    """The scheme with stages at r1, reached with one prediction, and at r2, with two interpolated linearly."""

    def rows(big: float) -> tuple[Weights, ...]:
        second = lagrange_weights(2, (r1 / r2,), r2 * big, "taylor")
        return (phi1(r1 * big),), second, lagrange_weights(3, (r1, r2), big, variant)

    return Scheme(kind, (r1, r2), rows, **options)
