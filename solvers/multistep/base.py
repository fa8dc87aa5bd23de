"""Multistep methods: a step is a weighted sum of the state and of the predictions made so far.

In x / alpha every method has the form x_s / alpha_s = keep x / alpha_t + sum_j weights_j q_j + noise z, with q_j the
predictions at t and at earlier nodes, newest first. A method defines these coefficients. The base class does the
rest: the history, the start, the corrector and the order of the last steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..one_step.coefficients import GAUSS, lagrange
from ..one_step.dpm_solver import DPMpp2S, DPMpp3S
from ..types.model_output import Quantity, quantity
from ..types.node import Node, Prediction
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step

Start = Literal["lower", "corrector", "runge_kutta"]
Coordinate = Literal["lam", "ratio", "t", "flow", "angle"]


class Coefficients(NamedTuple):
    """The coefficients of a step in x / alpha: of the state, of the predictions (newest first) and of the noise."""

    keep: float
    weights: Sequence[float]
    noise: float = 0.0


class Memory(NamedTuple):
    """The carry: earlier predictions (newest first), the weights of the last step, the number of remaining steps."""

    past: tuple[tuple[Node, Tensor], ...] = ()
    weights: Sequence[float] = ()
    remaining: int = 0


class Multistep(Solver):
    """Base class of multistep methods; a subclass defines ``depth`` and its formula.

    The formula is ``coefficients`` or, where it is the integral of an interpolating polynomial, ``integral``;
    ``corrector`` if the method has one. ``depth`` is a class variable where it is fixed, a field where users choose it
    as the option ``order``, and a property where it follows from other options.

    The first steps have too few earlier predictions. ``start`` decides what they do:

    - ``lower`` uses the available predictions. It costs no extra evaluations. The order is at most 2, because the first
      step is Euler's.
    - ``corrector`` corrects these steps with the prediction at their end, which the next step needs anyway. It costs no
      extra evaluations. The order is at most 3.
    - ``runge_kutta`` takes these steps with a one-step method of one order less. It costs 1 extra evaluation at order 3
      and 4 at order 4. The order is at most 4.

    ``lower_order_final`` uses no more predictions than steps remain, so the last step is Euler's.
    """

    quantity: Quantity = "x0"
    start: Start = "lower"
    lower_order_final: bool = False

    @property
    def depth(self) -> int:
        """How many predictions a step uses; see the class for its three forms."""
        raise NotImplementedError

    @property
    def memory(self) -> int:
        """How many predictions the carry keeps."""
        return self.depth

    @property
    def start_stages(self) -> int:
        """The least number of stages of the one-step method of ``start="runge_kutta"``, which has two or three."""
        return self.depth - 1

    @property
    def evaluate_again(self) -> bool:
        """Whether the model is evaluated again after the corrector."""
        return False

    @property
    def nominal_order(self) -> float:
        return float(self.depth)

    @property
    def ceiling(self) -> float:
        """The highest order that the start allows."""
        return {"lower": 2, "corrector": 3, "runge_kutta": 4}[self.start]

    @property
    def order(self) -> float:
        reached = min(self.nominal_order, self.ceiling)
        return min(reached, 2) if self.lower_order_final else reached  # the last step is Euler's

    @property
    def restartable(self) -> bool:
        return False

    def coefficients(self, problem: Problem, s: Node, past: Sequence[Node]) -> Coefficients:
        """The step from past[0] to s, from the predictions at ``past``, newest first; by default ``integral``."""
        return self.integral(problem, s, past[0], past)

    def corrector(self, problem: Problem, past: Sequence[Node], used: int) -> Sequence[float]:
        """The corrected weights of the step that led to past[0], one for each prediction at ``past``.

        The step itself used ``used`` predictions, all before past[0]. Empty weights leave the step as it is.
        """
        if self.start == "corrector" and len(past) < self.depth:
            return self.integral(problem, past[0], past[1], past).weights
        return ()

    def integral(self, problem: Problem, s: Node, t: Node, nodes: Sequence[Node]) -> Coefficients:
        """The step from t to s that integrates the polynomial through the predictions at ``nodes``."""
        return adams(problem, s, t, nodes, self.quantity)

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Memory:
        return Memory(remaining=len(nodes) - 1)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Memory, noise: Noise | None) -> Step:
        prediction = problem.predict(x, t)
        past = ((t, quantity(prediction, t, self.quantity)), *carry.past)
        if carry.weights:
            seen = past[: carry.remaining + 2] if self.lower_order_final else past
            x = self.corrected(problem, x, seen, carry.weights)
            if self.evaluate_again:
                past = ((t, quantity(problem.predict(x, t), t, self.quantity)), *carry.past)
        if self.start == "runge_kutta" and len(past) < self.depth - 1:
            moved = _one_step(self.start_stages, problem, x, t, s, prediction)
            return Step(moved, Memory(past, (), carry.remaining - 1))
        used = past[: min(self.depth, carry.remaining) if self.lower_order_final else self.depth]
        step = self.coefficients(problem, s, [node for node, _ in used])
        moved = (s.alpha / t.alpha * step.keep) * x
        for weight, (_, q) in zip(step.weights, used, strict=True):
            moved = moved + (s.alpha * weight) * q
        if step.noise:
            assert noise is not None
            moved = moved + (s.alpha * step.noise) * noise(t, s)
        return Step(moved, Memory(past[: self.memory], step.weights, carry.remaining - 1))

    def corrected(
        self, problem: Problem, x: Tensor, past: Sequence[tuple[Node, Tensor]], taken: Sequence[float]
    ) -> Tensor:
        """x after the corrector: moved by the corrector's weights less the weights of the step that led to x.

        Corrector and step have the same ``keep`` and the same noise, so the state before the step is not needed.
        """
        weights = self.corrector(problem, [node for node, _ in past], len(taken))
        if not weights:
            return x
        count = max(len(weights), len(taken) + 1)
        changes = ([*values, *[0.0] * (count - len(values))] for values in (weights, (0.0, *taken)))
        for weight, old, (_, q) in zip(*changes, past[:count], strict=True):
            x = x + (past[0][0].alpha * (weight - old)) * q
        return x


def _one_step(stages: int, problem: Problem, x: Tensor, t: Node, s: Node, first: Prediction) -> Tensor:
    """A step of DPM-Solver++ 2S or 3S, given its first prediction."""
    return (DPMpp2S() if stages == 2 else DPMpp3S()).advance(problem, x, t, s, first)


def place(node: Node, coordinate: Coordinate) -> float:
    """The value of a coordinate at a node."""
    if coordinate == "flow":
        return node.ratio / (1 + node.ratio)
    return math.atan(node.ratio) if coordinate == "angle" else float(getattr(node, coordinate))


def adams(
    problem: Problem,
    s: Node,
    t: Node,
    nodes: Sequence[Node],
    name: Quantity,
    coordinate: Coordinate = "lam",
    eta: float = 0.0,
) -> Coefficients:
    """The step from t to s with the predictions interpolated by Lagrange's polynomials in ``coordinate``.

    Every quantity q has a scale and a variable m in which the ODE is d(x / scale) = q dm. With r = ratio:

    - x0: scale sigma, m = 1 / r
    - eps: scale alpha, m = r
    - velocity: scale alpha + sigma, m = r / (1 + r)
    - v: scale sqrt(alpha^2 + sigma^2), m = atan r

    eta > 0 is the SDE of that eta, in x0 (scale sigma r^(eta^2)) or eps. The integrals are Gauss-Legendre sums in lam,
    exact to rounding. The coordinate ``flow`` is the velocity's m, and ``angle`` is v's.
    """
    if name == "eps" and coordinate == "ratio" and eta == 0:  # finite at sigma = 0 too
        h, at = s.ratio - t.ratio, [(node.ratio - t.ratio) for node in nodes]
        return Coefficients(1.0, lagrange(at, h * GAUSS[0], h * GAUSS[1]))
    rate, h = 1 + eta**2, s.lam - t.lam
    lams = t.lam + h * GAUSS[0]
    r = np.exp(-lams)
    points = {"lam": lams, "ratio": r, "flow": r / (1 + r), "angle": np.arctan(r)}.get(coordinate)
    if points is None:
        points = np.array([problem.node_of_lam(float(lam)).t for lam in lams])
    at = [place(node, coordinate) for node in nodes]
    keep, density = 1.0, -rate * r
    noise = eta * math.sqrt(max(0.0, (t.ratio - s.ratio) * (t.ratio + s.ratio)))
    if name == "x0":
        keep, density = (s.ratio / t.ratio) ** rate, rate * (s.ratio / r) ** rate
        noise = s.ratio * math.sqrt(max(0.0, -math.expm1(-2 * eta**2 * h)))
    elif name == "velocity":
        keep, density = (1 + s.ratio) / (1 + t.ratio), -(1 + s.ratio) * r / (1 + r) ** 2
    elif name == "v":
        scale = math.hypot(1, s.ratio)
        keep, density = scale / math.hypot(1, t.ratio), -scale * r / (1 + r**2)
    return Coefficients(keep, lagrange(at, points, h * GAUSS[1] * density), noise)
