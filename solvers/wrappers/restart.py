"""Restart sampling: adds noise up to a higher level and integrates down again, several times over the same levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from torch import Tensor

from ..errors import InputError
from ..one_step.runge_kutta import Heun
from ..registry.ranges import Range
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, renoise, require

Interval = tuple[float, ...]
RHO = 7.0  # the paper spaces the nodes of a round as EDM does its grids
COARSE = 3  # a grid of at most this many steps may miss any interval


@solvers.register(
    "restart",
    kind="ODE + noise",
    order=2,
    stochastic=True,
    evaluations=2,
    reference="Xu et al. 2023, arXiv:2306.14878, algorithms 1 and 2",
    formula="at ratio_min, K times: x / alpha + s_noise sqrt(ratio_max^2 - ratio^2) z, then the solver down again",
    note="restarts cost evaluations in addition to those of the grid's steps",
)
@dataclass(frozen=True)
class Restart(Wrapper):
    """Restart: ODE steps, and between chosen noise levels K rounds of fresh noise followed by ODE steps down again.

    Each of ``intervals`` is [n, K, ratio_min, ratio_max], levels of sigma / alpha, as in the paper. A round begins at
    the node after a step whose ratio is nearest to ratio_min, as in the authors' code, which rounds the published
    levels (19.35 is the node 19.35245). It adds noise up to ratio_max, and the solver returns
    over n nodes, equally spaced in ratio^(1/7). There are K rounds. If the grid itself has m times as many steps
    between the two levels, every step of a round is divided into m: with a fixed n the rounds' error would not vanish
    on fine grids.

    The default is a published setting for CIFAR-10, for a grid of 18 steps (43 evaluations with Heun). A multistep
    solver starts without history in and after every round, which keeps order 2.

    Raises InputError if the grid never reaches an interval: if it begins at or below ratio_min or has no node of
    sigma > 0 that low, to 1 %. The interval is skipped without an error on grids of three steps or fewer, and on grids
    that pass over it in their last step to sigma = 0.
    """

    solver: Solver = dataclasses.field(default=Heun())
    intervals: tuple[tuple[float, ...], ...] = ((3.0, 2.0, 0.06, 0.3),)
    s_noise: Annotated[float, Range(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("restart", self.solver, deterministic=True)
        for interval in self.intervals:
            whole = len(interval) == 4 and all(float(v).is_integer() for v in interval[:2])
            if not (whole and interval[0] >= 2 and interval[1] >= 1 and 0 < interval[2] < interval[3]):
                shown = ", ".join(f"{v:g}" for v in interval)
                raise InputError(
                    "restart: an interval is [n, K, ratio_min, ratio_max] with integers n >= 2 and K >= 1 and "
                    f"0 < ratio_min < ratio_max, got [{shown}]"
                )

    @property
    def order(self) -> float:
        return self.solver.order if self.solver.restartable else min(self.solver.order, 2.0)

    @property
    def stochastic(self) -> bool:
        return bool(self.intervals)

    @property
    def plans_grid(self) -> bool:
        return True

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        # the last step to sigma = 0 starts no round; if it passes over a whole interval, the grid is coarse there
        low, high = min(node.ratio for node in nodes if node.sigma > 0), nodes[0].ratio
        begins = tuple(_beginning(nodes, interval) for interval in self.intervals)
        for interval, begin in zip(self.intervals, begins, strict=True):
            passed_over = nodes[-1].sigma == 0 and low > interval[3]
            if begin is None and not passed_over and len(nodes) > COARSE + 1:
                shown = ", ".join(f"{v:g}" for v in interval)
                raise InputError(
                    f"restart: the interval [{shown}] is never reached: the grid's levels sigma / alpha above 0 go "
                    f"from {high:g} to {low:g}, and a level of at most {interval[2]:g} must follow a higher one"
                )
        return 0, tuple(nodes), begins, self.solver.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        index, nodes, begins, inner = carry
        step = self.solver.step(problem, x, t, s, inner, noise)
        for interval, begin in zip(self.intervals, begins, strict=True):
            if begin == index + 1:
                assert noise is not None
                step = self._rounds(problem, step, s, nodes, interval, noise)
                step = step._replace(carry=self.solver.init(problem, step.x, nodes[index + 1 :]))
        return step._replace(carry=(index + 1, nodes, begins, step.carry))

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        index, nodes, begins, inner = carry
        step = self.solver.to_data(problem, x, t, s, inner, noise)
        return step._replace(carry=(index + 1, nodes, begins, step.carry))

    def replaced(self, carry: Any, x: Tensor) -> Any:
        index, nodes, begins, inner = carry
        return index, nodes, begins, self.solver.replaced(inner, x)

    def _rounds(
        self, problem: Problem, step: Step, s: Node, nodes: Sequence[Node], interval: Interval, noise: Noise
    ) -> Step:
        """The rounds after a step to s, as one step with all their errors and failures; its carry has no meaning."""
        count, rounds, _, highest = interval
        # the schedule may end below ratio_max
        top = problem.node_of_lam(-math.log(highest))
        crossed = sum(s.ratio < node.ratio <= top.ratio for node in nodes)
        steps = (int(count) - 1) * max(1, crossed // (int(count) - 1))
        ends = [ratio ** (1 / RHO) for ratio in (top.ratio, s.ratio)]
        levels = [(ends[0] + i / steps * (ends[1] - ends[0])) ** RHO for i in range(1, steps)]
        down = (top, *(problem.node_of_lam(-math.log(level)) for level in levels), s)
        for _ in range(int(rounds)):
            raised, at = renoise(step.x, s, top, self.s_noise, noise)
            if at is s:
                return step
            step = step._replace(x=raised, carry=self.solver.init(problem, raised, down))
            for a, b in pairwise(down):
                step = self.solver.step(problem, step.x, a, b, step.carry, noise).after(step)
        return step


def _beginning(nodes: Sequence[Node], interval: Interval) -> int | None:
    """The index of the node after a step where the rounds of an interval begin; None if the grid never reaches it."""
    below, above = interval[2:]
    places = [k for k in range(1, len(nodes)) if nodes[k].sigma > 0 and nodes[k].ratio < above]
    if nodes[0].ratio <= below or not places or below < 0.99 * min(nodes[k].ratio for k in places):
        return None
    return min(places, key=lambda k: abs(nodes[k].ratio - below))
