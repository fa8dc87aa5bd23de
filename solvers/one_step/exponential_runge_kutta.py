"""Exponential Runge-Kutta methods: the linear part solved exactly, the prediction interpolated inside the step.

With h = lam_s - lam_t, predictions p_j of one kind made at t and at inner nodes lam_t + c_j h, and weights w_j of the
phi functions (``coefficients``), the state at a node q is

    x0:   x_q / alpha_q = e^-H x / alpha_t + sum_j w_j(H) x0_j + noise,        H = (1 + eta^2) (lam_q - lam_t)
    eps:  x_q / alpha_q = x / alpha_t + (1 + eta^2) ratio_q sum_j w_j(H) eps_j + noise,      H = lam_t - lam_q

The noise at q is the SDE's own over [t, q], put together from the increments between the nodes, so that a stage and the
end of the step see one Brownian path.
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

    With D_j = (p_j - p_0) / fraction_j: order 2 adds phi1 / 2 (``dpmsolver``) or phi2 (``taylor``) times D_1; order 3
    adds phi2 D_2 or the parabola's phi2 D' + phi3 D''. Both are of order 3 at fraction_2 = 2/3. ``flipped`` is
    ``taylor`` with the constant 1/2 of phi3 = 1/2 - 1 / H + (1 - e^-H) / H^2 subtracted.
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
    """What a step does: the kind of prediction, the stages' places, and for H the stages' weights and the end's.

    Stages stand at ``fractions`` of the step in lam. ``joint`` noise is one Brownian path; otherwise the stages and the
    end draw independently.
    """

    kind: Kind
    fractions: tuple[float, ...]
    rows: Callable[[float], tuple[Weights, ...]]
    eta: float = 0.0
    s_noise: float = 1.0
    joint: bool = True

    def rate(self) -> float:
        """H / h."""
        return 1 + self.eta**2 if self.kind == "x0" else -1.0

    def of(self, prediction: Prediction) -> Tensor:
        """The prediction that the weights go with."""
        return prediction.x0 if self.kind == "x0" else prediction.eps

    def move(self, x: Tensor, t: Node, q: Node, weights: Sequence[float], predictions: Sequence[Tensor]) -> Tensor:
        """The state at q without the noise."""
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
        """What the normalised increment from a to b weighs in the state at q."""
        if self.kind == "x0":
            fresh = -math.expm1(-2 * self.eta**2 * (b.lam - a.lam))
            return self.s_noise * q.sigma * math.exp(-(self.eta**2) * (q.lam - b.lam)) * math.sqrt(fresh)
        return self.s_noise * self.eta * q.alpha * math.sqrt((a.ratio - b.ratio) * (a.ratio + b.ratio))


class Group(NamedTuple):
    """The orders of the intervals that remain; the state where the group began, its nodes and their predictions."""

    plan: tuple[int, ...]
    x: Tensor | None = None
    nodes: tuple[Node, ...] = ()
    predictions: tuple[Tensor, ...] = ()


class ExponentialRungeKutta(Solver):
    """An exponential Runge-Kutta method; a subclass states its ``scheme``.

    In ``mode="grid"`` the stages are the grid's own nodes, at one evaluation an interval: in a group of p intervals the
    k-th is stepped from the group's start with the k predictions made by then. Intervals that fill no group are taken
    with lower orders at the end, and so is the last group with ``lower_order_final``, or if the grid ends at sigma = 0.
    What a hook changes inside a group reaches the predictions alone. With eta > 0 each interval draws the noise of the
    whole way from the group's start anew, apart from the noise of the others: weak order 1.
    """

    mode: str = "singlestep"
    variant: str = "dpmsolver"
    lower_order_final: bool = False
    eta: NonNegative = 0.0

    def scheme(self) -> Scheme:
        """The method's numbers."""
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
    def restartable(self) -> bool:
        return self.mode != "grid"

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
        """The state (B, *) at s from x (B, *) at t and the prediction already made there; sigma_s > 0."""
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
        """The weights of a group's interval, its last one or another."""
        return self.variant


def orders(order: int, intervals: int, lower_order_final: bool) -> tuple[int, ...]:
    """The order of every interval of a grid taken in groups of ``order``.

    >>> orders(3, 7, False), orders(3, 6, False), orders(3, 6, True)
    ((1, 2, 3, 1, 2, 3, 1), (1, 2, 3, 1, 2, 3), (1, 2, 3, 1, 2, 1))
    """
    whole, rest = divmod(intervals, order)
    if rest == 0 and lower_order_final and order > 1:
        return (*range(1, order + 1),) * (whole - 1) + (*range(1, order), 1)
    return (*range(1, order + 1),) * whole + (*range(1, rest + 1),)


def check_ordered(solver: Solver, first: str, second: str) -> None:
    """Refuses stages that are not in the order of their names.

    Raises:
        InputError: names both options and their values.
    """
    low, high = getattr(solver, first), getattr(solver, second)
    if not low < high:
        name = solvers.info_of(solver).name
        raise InputError(f"{name}: {first} must be less than {second}, got {low:g}, {high:g}")


def one_stage(kind: Kind, **options: Any) -> Scheme:
    """One prediction, held over the step."""
    return Scheme(kind, (), lambda big: ((phi1(big),),), **options)


def two_stages(kind: Kind, r1: float, variant: str = "dpmsolver", **options: Any) -> Scheme:
    """A stage at r1 by one prediction."""

    def rows(big: float) -> tuple[Weights, ...]:
        return (phi1(r1 * big),), lagrange_weights(2, (r1,), big, variant)

    return Scheme(kind, (r1,), rows, **options)


def three_stages(kind: Kind, r1: float, r2: float, variant: str = "dpmsolver", **options: Any) -> Scheme:
    """Stages at r1 by one prediction and at r2 by two, interpolated linearly."""

    def rows(big: float) -> tuple[Weights, ...]:
        second = lagrange_weights(2, (r1 / r2,), r2 * big, "taylor")
        return (phi1(r1 * big),), second, lagrange_weights(3, (r1, r2), big, variant)

    return Scheme(kind, (r1, r2), rows, **options)
