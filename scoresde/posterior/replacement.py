"""Methods that put the observed part into the state after each step, or start from it: replace, ilvr, repaint, sdedit.

The model predicts p(x0) throughout. What the observation knows is noised to the level of the step, with fresh noise, so
that both parts of the state have the same level. All assume observations without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from solvers import Hook, InputError, Node, solve
from solvers.loop import Solution
from solvers.noise.seeded import SeededNoise
from solvers.registry.ranges import Count, NonNegative, Positive, Range
from solvers.wrappers.base import renoise

from ..models.problem import Diffusion
from ..operators.base import Operator
from ..operators.linear import Downsample
from .base import Draws, Posterior, Task, posteriors


@dataclass(frozen=True)
class Known:
    """A hook that replaces what an operator P observes of the state: x + P^+ (alpha p + sigma P z - P x).

    Attributes:
        operator: P, which is linear.
        observed: p (B, *m), what P observes of the samples at sigma = 0.
        noise: the source of z, a fresh draw at each call.
        until: the ratio sigma / alpha below which states stay as they are.
    """

    operator: Operator
    observed: Tensor
    noise: SeededNoise
    until: float = 0.0

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        if node.ratio < self.until:
            return x
        other = x if node.clean else x - node.sigma * self.noise.draw()
        missing = node.alpha * self.observed - self.operator(other)
        return x + self.operator.pinv(missing, tuple(x.shape[1:]))


class _WithoutNoise(Posterior):
    """A method that uses A^+ y, as if y had no noise."""

    noise = "ignored"

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        super().check(operator, shape)
        operator.pinv(torch.zeros(1, *operator.shape(shape), dtype=torch.float64), shape)  # raises if it has none


@posteriors.register(
    "replace",
    kind="hook",
    aliases=("replacement",),
    reference="Song et al. 2021, arXiv:2011.13456, appendix I.2",
    formula="after each step x + A^+ (alpha y + sigma A z - A x)",
    note="the other numbers do not see y but through the noised state, at any number of steps",
)
@dataclass(frozen=True)
class Replace(_WithoutNoise):
    """The observed part of the state is replaced after each step by y at the noise of the step."""

    def known(self, task: Task, noise: SeededNoise) -> Known:
        """The hook that replaces."""
        return Known(task.operator, task.y, noise)

    def draw(self, task: Task) -> Draws:
        self.check(task.operator, task.shape)
        noise = task.noise()
        hooks: list[Hook] = [self.known(task, noise), *task.hooks]
        problem = Diffusion(task.model, task.conditions)
        found = solve(task.solver, problem, task.start(noise), task.nodes, noise, hooks, strict=False)
        return Draws(found.x, found.nfe)


@posteriors.register(
    "ilvr",
    kind="hook",
    reference="Choi et al. 2021, arXiv:2108.02938, algorithm 1",
    formula="after each step x + P^+ P (alpha A^+ y + sigma z - x), P = means of factor x factor",
    note="its low-pass filter is block means; the release's is a bicubic one",
)
@dataclass(frozen=True)
class ILVR(Replace):
    """The low frequencies of the state are replaced after each step by those of A^+ y at the noise of the step.

    Low frequencies are means of blocks of ``factor`` numbers along each axis. Below the noise level ``until`` (sigma /
    alpha) the state is left alone, so that y is a guide but not a constraint.
    """

    factor: Annotated[int, Range(2)] = 4
    until: NonNegative = 0.0

    def check(self, operator: Operator, shape: tuple[int, ...]) -> None:
        super().check(operator, shape)
        Downsample(self.factor).shape(shape)

    def known(self, task: Task, noise: SeededNoise) -> Known:
        low = Downsample(self.factor)
        return Known(low, low(task.operator.pinv(task.y, task.shape)), noise, self.until)


@posteriors.register(
    "repaint",
    kind="solver",
    reference="Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 and appendix B",
    formula="repeats times over each jump steps: replace, with x_t = alpha_ts x_s + sqrt(var_ts) z between",
    note="costs repeats times the evaluations of the grid",
)
@dataclass(frozen=True)
class RePaint(Replace):
    """Replacement, where each ``jump`` steps are made ``repeats`` times, with the forward kernel back up between.

    The groups of steps are counted from the last node of sigma > 0, as in the release: a rest of fewer steps at the
    start, and the step to sigma = 0, are made once. A group is a solve of its own, so solvers of several steps start
    again in it.
    """

    jump: Count = 10
    repeats: Count = 10

    budgeted = False

    def draw(self, task: Task) -> Draws:
        self.check(task.operator, task.shape)
        if task.solver.nodes is not None:
            raise InputError(f"repaint goes back to noisier nodes, and {task.solver} has fixed steps: take another one")
        noise = task.noise()
        hooks: list[Hook] = [self.known(task, noise), *task.hooks]
        problem, x, found = Diffusion(task.model, task.conditions), task.start(noise), None
        for nodes, repeats in self.groups(task.nodes):
            for k in range(repeats):
                if k:
                    x, _ = renoise(x, nodes[-1], nodes[0], 1.0, noise)
                made = solve(task.solver, problem, x, nodes, noise, hooks, strict=False)
                found = made if found is None else made.after(found)
                x = made.x
        assert isinstance(found, Solution)
        return Draws(found.x, found.nfe)

    def groups(self, nodes: Sequence[Node]) -> list[tuple[Sequence[Node], int]]:
        """The nodes of each group of steps, and how often the group is made.

        Raises:
            InputError: the grid has fewer steps at sigma > 0 than a group.
        """
        last = len(nodes) - (2 if nodes[-1].clean else 1)  # the last node of sigma > 0
        if self.jump > last:
            raise InputError(
                f"repaint: jump={self.jump} is more than the {last} steps of the grid between nodes of sigma > 0"
            )
        first = last % self.jump
        found = [(nodes[i : i + self.jump + 1], self.repeats) for i in range(first, last, self.jump)]
        start = [(nodes[: first + 1], 1)] if first else []
        return [*start, *found, *([(nodes[last:], 1)] if nodes[-1].clean else [])]


@posteriors.register(
    "sdedit",
    kind="solver",
    reference="Meng et al. 2022, arXiv:2108.01073, algorithm 1",
    formula="x = alpha A^+ y + sigma z at sigma / alpha = level, then the model alone",
    note="what y does not observe of a sample is 0 at the start, and y is forgotten as far as level is high",
)
@dataclass(frozen=True)
class SDEdit(_WithoutNoise):
    """The solve of p(x0) starts at the noise level ``level`` (sigma / alpha) from A^+ y, and sees y at no other place.

    The part of the grid above ``level`` is left out: fewer evaluations than its steps.
    """

    level: Positive = 1.0

    def draw(self, task: Task) -> Draws:
        self.check(task.operator, task.shape)
        if task.solver.nodes is not None:
            raise InputError(f"sdedit starts between nodes, and {task.solver} has fixed steps: take another solver")
        noise, nodes = task.noise(), self.nodes(task)
        x = nodes[0].alpha * task.operator.pinv(task.y, task.shape) + nodes[0].sigma * noise.initial()
        found = solve(
            task.solver, Diffusion(task.model, task.conditions), x, nodes, noise, task.hooks, strict=False
        )  # fmt: skip
        return Draws(found.x, found.nfe)

    def nodes(self, task: Task) -> tuple[Node, ...]:
        """The node at ``level`` and the grid's below it.

        Raises:
            InputError: the level is outside of the grid's levels above 0.
        """
        high, low = task.nodes[0].ratio, min(node.ratio for node in task.nodes if not node.clean)
        if not low <= self.level <= high:
            raise InputError(f"sdedit: level={self.level:g} is outside [{low:g}, {high:g}], the levels of the grid")
        start = task.model.sde.node_of_lam(-torch.tensor(self.level, dtype=torch.float64).log().item())
        # a node that is the start but for rounding is left out
        return (start, *(node for node in task.nodes if node.ratio < start.ratio * (1 - 1e-9)))
