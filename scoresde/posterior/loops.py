"""Methods with a loop around solves: each round draws x0 near the model's guess and the observation, and adds noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from solvers import InputError, Node, solve
from solvers.loop import Solution, run_hooks
from solvers.noise.seeded import SeededNoise
from solvers.registry.ranges import Count, Positive

from ..models.problem import Diffusion
from ..operators.base import Operator
from .base import Draws, Posterior, Task, posteriors
from .conditional import conditional


class _Loop(Posterior):
    """A method that solves p(x0) many times, on short grids of its own, with the solver of the task."""

    nonlinear = True
    noise = "needed"
    differentiates = "operator"
    budgeted = False

    inner: int

    def denoised(self, task: Task, z: Tensor, top: Node, noise: SeededNoise) -> Solution:
        """The solve of p(x0) from the state alpha z (B, *) at ``top`` to the data, in ``inner`` steps.

        Their levels sigma / alpha are geometric, down to the lowest of the task's grid above 0.
        """
        low = last_noisy(task)
        nodes = (top,) if top.ratio < 1.01 * low.ratio else ladder(task, top, low, self.inner)
        problem = Diffusion(task.model, task.conditions)
        clean = task.model.sde.clean
        return solve(task.solver, problem, top.alpha * z, (*nodes, clean), noise, strict=False)

    def check_solver(self, task: Task) -> None:
        """Rejects solvers that cannot solve on other grids than the task's."""
        if task.solver.nodes is not None:
            name = posteriors.info_of(self).name
            raise InputError(f"{name} solves on grids of its own, and {task.solver} has fixed steps: take another one")


def last_noisy(task: Task) -> Node:
    """The last node of the task's grid with sigma > 0."""
    return [node for node in task.nodes if not node.clean][-1]


def ladder(task: Task, top: Node, low: Node, count: int) -> tuple[Node, ...]:
    """``count`` nodes from top to low, with levels sigma / alpha in equal ratios; ``top`` alone if count is 1."""
    if count == 1:
        return (top,)
    step = (low.lam - top.lam) / (count - 1)
    return (top, *task.model.sde.nodes_of_lam([top.lam + i * step for i in range(1, count - 1)]), low)


def noised(x0: Tensor, node: Node, noise: SeededNoise) -> Tensor:
    """A draw of x_t / alpha (B, *) at a node, given x0 (B, *)."""
    return x0 + node.ratio * noise.draw()


@posteriors.register(
    "daps",
    kind="loop",
    reference="Zhang et al. 2024, arXiv:2407.01521, algorithm 1",
    formula="at each level r: D = the ODE's x0 from x; x0 ~ N(D, r^2) p(y | x0); x / alpha = x0 + (next r) z",
    note="too wide: x0 given x has another spread than r. The released code makes the likelihood 50 times sharper",
)
@dataclass(frozen=True)
class DAPS(_Loop):
    """Decoupled annealing: at each noise level, an x0 by the ODE, a draw near it that fits y, and noise of the next.

    The ``outer`` levels sigma / alpha are geometric between the ends of the grid, with an ODE of ``inner`` steps from
    each. The draw of x0 from N(D, r^2 I) p(y | x0) is exact for linear operators, and the state after ``langevin``
    Metropolis-adjusted steps for others.
    """

    outer: Count = 200
    inner: Count = 5
    langevin: Count = 100

    keeps_prior = False  # too wide: of N(0, 1) the variance 2 is left
    solver = "ddim"

    def draw(self, task: Task) -> Draws:
        self.check(task.operator, task.shape)
        self.check_solver(task)
        if task.solver.stochastic:
            raise InputError(
                f"daps solves an ODE from each level, and {task.solver} draws noise: take ddim or dpmpp_2m"
            )
        noise, nodes = task.noise(), ladder(task, task.nodes[0], last_noisy(task), self.outer)
        z, found = task.start(noise) / nodes[0].alpha, None
        for node, following in zip(nodes, (*nodes[1:], task.model.sde.clean), strict=True):
            made = self.denoised(task, z, node, noise)
            found = made if found is None else made.after(found)
            x = conditional(task.operator, task.y, made.x, node.ratio, noise, self.langevin)
            z = x if following.clean else noised(x, following, noise)
            if task.hooks:
                z = run_hooks(following.alpha * z, following, task.hooks)[0] / following.alpha
        assert found is not None
        return Draws(z, found.nfe)


@posteriors.register(
    "split_gibbs",
    kind="loop",
    aliases=("pnp_dm",),
    reference="Wu et al. 2024, arXiv:2405.18782, algorithm 1",
    formula="z ~ N(x, rho^2) p(y | z); x ~ p(x0 | x0 + rho n = z) by the reverse SDE; rho falls",
    note="right in the limit of small rho and many sweeps, between which it mixes slowly",
)
@dataclass(frozen=True)
class SplitGibbs(_Loop):
    """Split Gibbs sampling (PnP-DM): x0 has a copy z at the distance rho, which alone is observed.

    Each sweep draws z given x and y, exactly for linear operators and by ``langevin`` Metropolis-adjusted steps for
    others, then x given z: a solve of the reverse SDE in ``inner`` steps from the level rho. In the first two thirds of
    the sweeps rho falls geometrically from ``rho_max`` (or the top of the grid) to ``rho_min``, where it stays.
    """

    sweeps: Count = 100
    rho_max: Positive = 10.0
    rho_min: Positive = 0.1
    inner: Count = 20
    langevin: Count = 100

    exact_for = "any data and operator, for rho_min to 0 and as many sweeps as mix"
    solver = "ddpm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho_min > self.rho_max:
            raise InputError(f"split_gibbs: rho_min={self.rho_min:g} is above rho_max={self.rho_max:g}")

    def exact_version(self, covariance: Tensor, operator: Operator) -> SplitGibbs | None:
        return replace(self, rho_min=min(self.rho_min, 0.05))  # which draws differ from the limit by less than noise

    def draw(self, task: Task) -> Draws:
        self.check(task.operator, task.shape)
        self.check_solver(task)
        if not task.solver.stochastic:
            raise InputError(f"split_gibbs draws x0 given a noisy state, and {task.solver} is deterministic: take ddpm")
        noise, clean = task.noise(), task.model.sde.clean
        x, z, found = noise.initial(), None, None
        for node in self.levels(task):
            z = conditional(task.operator, task.y, x, node.ratio, noise, self.langevin, z)
            made = self.denoised(task, z, node, noise)
            found = made if found is None else made.after(found)
            x = run_hooks(made.x, clean, task.hooks)[0]
        assert found is not None
        return Draws(x, found.nfe)

    def levels(self, task: Task) -> Sequence[Node]:
        """The node of rho in each sweep.

        Raises:
            InputError: rho_min is not between the levels of the grid.
        """
        high, low = task.nodes[0], last_noisy(task)
        if not low.ratio <= self.rho_min <= high.ratio:
            raise InputError(
                f"split_gibbs: rho_min={self.rho_min:g} is outside [{low.ratio:g}, {high.ratio:g}], the grid's levels"
            )
        sde = task.model.sde
        top = sde.node_of_lam(-math.log(min(self.rho_max, high.ratio)))
        end = sde.node_of_lam(-math.log(self.rho_min))
        falling = ladder(task, top, end, math.ceil(2 * self.sweeps / 3))
        return [*falling, *[end] * (self.sweeps - len(falling))]
