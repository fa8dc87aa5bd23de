"""Step doubling: an error estimate for any solver of fixed steps, from two half steps and one whole step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..noise.brownian import BrownianNoise, clock
from ..one_step.runge_kutta import Heun
from ..types.node import Node
from ..types.problem import Problem
from ..types.solver import Noise, Solver, Step, solvers
from .base import Wrapper, require
from .correctors import in_float64


class _Recorded:
    """A noise source that records the draws of the half steps, so that the whole step uses the same noise path."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.pieces: list[tuple[Node, Node, Tensor]] = []

    def __call__(self, t: Node, s: Node) -> Tensor:
        z = self.noise(t, s)
        if t.ratio != s.ratio:
            self.pieces.append((t, s, z))
        return z

    def composed(self, t: Node, s: Node) -> Tensor:
        """The increment from t to s, composed of the recorded ones."""
        if t.ratio == s.ratio or isinstance(self.noise, BrownianNoise):
            return self.noise(t, s)
        inside = [(a, b, z) for a, b, z in self.pieces if a.lam > t.lam - 1e-9 and b.lam < s.lam + 1e-9]
        whole = clock(t.lam, s.lam)
        shares = [clock(a.lam, b.lam) / whole for a, b, _ in inside]
        if abs(sum(shares) - 1) > 1e-6:
            raise InputError(
                "step_doubling: this solver draws noise at times between those of the half steps; use BrownianNoise"
            )
        return sum((math.sqrt(share) * z for share, (_, _, z) in zip(shares, inside, strict=True)), torch.zeros(()))


@solvers.register(
    "step_doubling",
    aliases=("richardson",),
    kind="ODE",
    order=2,
    nonlinear="its error estimate is a norm",
    evaluations=6,
    reference="Hairer, Norsett and Wanner 1993, Solving Ordinary Differential Equations I, section II.4",
    formula="x_s = two half steps; error = |two half steps - one step| / (2^order - 1)",
)
@dataclass(frozen=True)
class StepDoubling(Wrapper):
    """Estimates the error of any solver of fixed steps: compares two half steps, in lam, with one whole step.

    The state is that of the half steps. The step's ``error`` (B,) is each sample's root mean square of the difference
    from the whole step over 2^order - 1: for an ODE solver, the leading error of the two half steps. ``extrapolate``
    adds this difference to the state: one order more, for single-step deterministic solvers.

    The noise of the whole step is composed of that of the half steps, over the clock alpha^2 / sigma^2, so both use the
    same noise path. With a multistep solver, the whole step and the first half step start from the same history, whose
    nodes are half a whole step apart: the estimate is then only an upper bound. The last step, to sigma = 0, has no
    middle and no estimate. Raises InputError around a solver that plans its steps from the whole grid, because the half
    steps are not the grid's.
    """

    solver: Solver = dataclasses.field(default=Heun())
    extrapolate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("step_doubling", self.solver, other_steps=True)
        if self.extrapolate:
            require("step_doubling(extrapolate=True)", self.solver, restartable=True, deterministic=True)

    @property
    def order(self) -> float:
        return self.solver.order + self.extrapolate

    @property
    def nonlinear(self) -> str:
        return solvers.info_of(self).nonlinear

    @property
    def evaluations(self) -> int:
        return 3 * self.solver.evaluations

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        halved = [nodes[0]]
        for t, s in pairwise(nodes):
            halved += [_middle(problem, t, s), s] if s.sigma > 0 and t.sigma > 0 else [s]
        return self.solver.init(problem, x, tuple(halved))

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        middle = _middle(problem, t, s)
        record = None if noise is None else _Recorded(noise)
        half = self.solver.step(problem, x, t, middle, carry, record)
        fine = self.solver.step(problem, half.x, middle, s, half.carry, record)
        coarse = self.solver.step(problem, x, t, s, carry, None if record is None else record.composed)
        gap = (1 / (2**self.solver.order - 1)) * (fine.x - coarse.x)
        error = in_float64(gap.detach()).flatten(1).pow(2).mean(1).sqrt().cpu()
        failed = coarse.after(fine.after(half)).failed
        return Step(fine.x + gap if self.extrapolate else fine.x, fine.carry, error, failed=failed)


def _middle(problem: Problem, t: Node, s: Node) -> Node:
    return problem.node_of_lam(0.5 * (t.lam + s.lam))
