"""Solver to solver: methods built from other methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from .ancestral import ReverseDiffusion
from .brownian import BrownianNoise, clock
from .errors import InputError
from .exponential import DPMpp2M
from .exponential_runge_kutta import Group
from .langevin import Langevin, widened
from .ranges import Count, Range
from .runge_kutta import Euler, Heun
from .types import Corrector, Node, Noise, Prediction, Problem, Solver, Step, correctors, solvers


class _Probe:
    """A problem and a noise source with one-dimensional answers, to see what a step leaves behind."""

    def node(self, t: float) -> Node:
        return Node(t, 1.0, t, 0.0, 1.0)

    def node_of_lam(self, lam: float) -> Node:
        return self.node(math.exp(-lam))

    def predict(self, x: Tensor, node: Any) -> Prediction:
        return Prediction(0 * x, (1 / node.like(x).sigma) * x)

    def log_prob(self, x: Tensor, node: Any) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype)

    def __call__(self, t: Node, s: Node) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64)


def planned(carry: Any) -> bool:
    """Whether a carry holds nodes of the grid or a plan for its intervals: such a solver can take no other steps."""
    if isinstance(carry, Node | Group):
        return True
    parts = carry if isinstance(carry, tuple) else getattr(carry, "__dict__", {}).values()
    return any(map(planned, parts))


def single_step(solver: Solver) -> bool:
    """Whether a solver's steps leave nothing to the next: it can then be started anew at any state of the grid.

    What ``init`` found, the number of steps say, may be handed on, but not changed.
    """
    if solver.adaptive:
        return False
    probe, x, carry = _Probe(), torch.ones(1, 1, dtype=torch.float64), _start(solver)
    return not planned(carry) and solver.step(probe, x, probe.node(1.0), probe.node(0.8), carry, probe).carry is carry


def _start(solver: Solver) -> Any:
    """What a solver's ``init`` finds in a grid wide enough for every solver."""
    probe = _Probe()
    nodes = tuple(probe.node(t) for t in (1e9, 1.0, 0.8, 1e-9))
    return solver.init(probe, torch.ones(1, 1, dtype=torch.float64), nodes)


def require(
    name: str, solver: Solver, alone: bool = False, fixed_noise: bool = True, other_steps: bool = False
) -> None:
    """Refuses what a wrapper makes no sense around.

    Args:
        alone: the wrapper needs steps that can be taken one by one, from any state.
        fixed_noise: False where the wrapper needs a deterministic solver.
        other_steps: the wrapper takes steps that are not the grid's.

    Raises:
        InputError: the solver is adaptive, multistep, stochastic or bound to the grid, where that is refused.
    """
    if solver.adaptive:
        raise InputError(f"{name}: {solver} chooses its own steps; take a solver of fixed steps")
    if alone and not single_step(solver):
        raise InputError(f"{name}: {solver} carries state from step to step; take a single-step solver")
    if other_steps and planned(_start(solver)):
        raise InputError(f"{name}: {solver} plans its steps from the whole grid; take a solver that steps from t to s")
    if not fixed_noise and solver.stochastic:
        raise InputError(f"{name}: {solver} draws noise; take a deterministic solver")


@solvers.register(
    "pc",
    aliases=("predictor_corrector",),
    kind="SDE + MCMC",
    order=1,
    stochastic=True,
    evaluations=2,
    reference="Song et al. 2021, arXiv:2011.13456, algorithm 1",
    formula="x_s = corrector(... corrector(predictor(x)))",
)
@dataclass(frozen=True)
class PC(Solver):
    """Predictor-corrector: a step of any solver, then corrector steps at the level it arrived at.

    What it tends to is the corrector's law, see ``limit_variance``, and it does so at order 1 whatever the predictor's.
    """

    predictor: Solver = dataclasses.field(default=ReverseDiffusion())
    corrector: Corrector = dataclasses.field(default=Langevin())
    corrector_steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor.adaptive:
            raise InputError(f"pc: {self.predictor} chooses its own steps and cannot be a predictor")

    @property
    def order(self) -> float:
        # a corrector's law is its own, and lags behind the level by a step's width
        return min(1, self.predictor.order)

    @property
    def nonlinear(self) -> str:
        return self.predictor.nonlinear or correctors.info_of(self.corrector).nonlinear

    @property
    def evaluations(self) -> int:
        return self.predictor.evaluations + self.corrector_steps * correctors.info_of(self.corrector).evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.corrector.limit_variance(variance, node)

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return self.predictor.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        assert noise is not None
        step = self.predictor.step(problem, x, t, s, carry, noise)
        x = step.x
        for _ in range(self.corrector_steps):
            x = self.corrector.correct(problem, x, s, noise)
        return step._replace(x=x)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.predictor.to_data(problem, x, t, s, carry, noise)


@solvers.register(
    "churn",
    aliases=("stochastic_heun", "edm_stochastic"),
    kind="ODE + noise",
    order=2,
    stochastic=True,
    evaluations=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 2",
    formula="x' / alpha' = x / alpha + s_noise sqrt(ratio'^2 - ratio^2) z, ratio' = (1 + gamma) ratio; "
    "x_s = solver(x', t' -> s)",
    note="more noise than s_noise = 1 adds does not vanish on finer grids",
)
@dataclass(frozen=True)
class Churn(Solver):
    """EDM's stochastic sampler: fresh noise raises the level a little before each step of the solver.

    The level sigma / alpha is raised by the factor 1 + gamma, gamma = min(s_churn / N, sqrt(2) - 1) on a grid of N
    steps, while it lies in [s_tmin, s_tmax]; never beyond the schedule's own end. The published settings: for
    ImageNet 64 ``churn(s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003)``, for CIFAR-10
    ``churn(s_churn=30, s_tmin=0.01, s_tmax=1, s_noise=1.007)``.
    """

    solver: Solver = dataclasses.field(default=Heun())
    s_churn: Annotated[float, Range(0)] = 40.0
    s_tmin: Annotated[float, Range(0)] = 0.0
    s_tmax: Annotated[float, Range(0)] = math.inf
    s_noise: Annotated[float, Range(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("churn", self.solver, alone=True)
        if self.s_tmin > self.s_tmax:
            raise InputError(f"churn: s_tmin={self.s_tmin:g} is above s_tmax={self.s_tmax:g}")

    @property
    def order(self) -> float:
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0 or self.solver.stochastic

    @property
    def nonlinear(self) -> str:
        return self.solver.nonlinear

    @property
    def evaluations(self) -> int:
        return self.solver.evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.solver.limit_variance(variance, node)

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        return len(nodes) - 1, self.solver.init(problem, x, nodes)

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x, t = self._raise(problem, x, t, carry[0], noise)
        return self.solver.step(problem, x, t, s, carry[1], noise)._replace(carry=carry)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        x, t = self._raise(problem, x, t, carry[0], noise)
        return self.solver.to_data(problem, x, t, s, carry[1], noise)._replace(carry=carry)

    def _raise(self, problem: Problem, x: Tensor, t: Node, steps: int, noise: Noise | None) -> tuple[Tensor, Node]:
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_tmin <= t.ratio <= self.s_tmax else 0.0
        if gamma == 0:
            return x, t
        assert noise is not None
        return renoise(x, t, problem.node_of_lam(t.lam - math.log1p(gamma)), self.s_noise, noise)


def renoise(x: Tensor, t: Node, up: Node, s_noise: float, noise: Noise) -> tuple[Tensor, Node]:
    """x (B, *) at t with the noise that the forward process adds up to the noisier node ``up``, and that node.

    The state stays where it is if ``up`` is not the noisier one: the schedule may end before.
    """
    if up.ratio <= t.ratio:
        return x, t
    size = s_noise * math.sqrt((up.ratio - t.ratio) * (up.ratio + t.ratio))
    return (up.alpha / t.alpha) * x + (up.alpha * size) * noise(t, t), up


@solvers.register(
    "final",
    aliases=("last_steps",),
    kind="ODE",
    order=2,
    reference="Karras et al. 2022, arXiv:2206.00364, algorithm 1 (its last step is Euler's)",
    formula="x_s = solver(x), but last(x) over the last steps",
)
@dataclass(frozen=True)
class Final(Solver):
    """A policy for the end: the last ``steps`` steps of the grid are taken by another solver.

    ``last`` starts anew there, so a multistep one has no history. A step of it makes a local error of its own order,
    and there are a fixed number of them: the whole has the lower of the solver's order and one more than the last's.
    """

    solver: Solver = dataclasses.field(default=DPMpp2M())
    last: Solver = dataclasses.field(default=Euler())
    steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("final", self.solver)
        require("final", self.last)

    @property
    def order(self) -> float:
        return min(self.solver.order, self.last.order + 1)

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic or self.last.stochastic

    @property
    def nonlinear(self) -> str:
        return self.solver.nonlinear or self.last.nonlinear

    @property
    def evaluations(self) -> int:
        return self.solver.evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.solver.limit_variance(variance, node)

    def init(self, problem: Problem, x: Tensor, nodes: Sequence[Node]) -> Any:
        before = max(len(nodes) - 1 - self.steps, 0)
        start = self.solver.init(problem, x, nodes) if before else self.last.init(problem, x, nodes)
        return before, tuple(nodes[before:]), start

    def step(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self._go("step", problem, x, t, s, carry, noise)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self._go("to_data", problem, x, t, s, carry, noise)

    def _go(self, how: str, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        before, nodes, inner = carry
        solver = self.solver if before > 0 else self.last
        step: Step = getattr(solver, how)(problem, x, t, s, inner, noise)
        inner = self.last.init(problem, step.x, nodes) if before == 1 else step.carry
        return step._replace(carry=(before - 1, nodes, inner))


class _Recorded:
    """The noise of the fine steps, kept so that the coarse step sees the same path."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.pieces: list[tuple[Node, Node, Tensor]] = []

    def __call__(self, t: Node, s: Node) -> Tensor:
        z = self.noise(t, s)
        if t.ratio != s.ratio:
            self.pieces.append((t, s, z))
        return z

    def composed(self, t: Node, s: Node) -> Tensor:
        """The increment from t to s, of the recorded ones."""
        if t.ratio == s.ratio or isinstance(self.noise, BrownianNoise):
            return self.noise(t, s)
        inside = [(a, b, z) for a, b, z in self.pieces if a.lam > t.lam - 1e-9 and b.lam < s.lam + 1e-9]
        whole = clock(t.lam, s.lam)
        shares = [clock(a.lam, b.lam) / whole for a, b, _ in inside]
        if abs(sum(shares) - 1) > 1e-6:
            raise InputError(
                "step_doubling: this solver draws noise between the half steps' own times; use BrownianNoise"
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
class StepDoubling(Solver):
    """An error estimate for any solver of fixed steps: two half steps, in lam, beside one whole step.

    Returns the half steps' state, and as the step's ``error`` (B,) each sample's root mean square of its difference
    from the whole step over 2^order - 1, the leading error of an ODE solver's two half steps. ``extrapolate`` adds that
    difference to the state: one order more, for single-step deterministic solvers.

    The noise of the whole step is composed of that of the half steps, over the clock alpha^2 / sigma^2: both see the
    same path. The whole step of a multistep solver starts from the same history as the first half step, which
    stands at half its distance: the estimate is then only an upper bound. The last step, to sigma = 0, has no middle
    and no estimate. Raises InputError around a solver that plans its steps from the whole grid: the half steps are not
    the grid's.
    """

    solver: Solver = dataclasses.field(default=Heun())
    extrapolate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("step_doubling", self.solver, other_steps=True)
        if self.extrapolate:
            require("step_doubling(extrapolate=True)", self.solver, alone=True, fixed_noise=False)

    @property
    def order(self) -> float:
        return self.solver.order + self.extrapolate

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    @property
    def evaluations(self) -> int:
        return 3 * self.solver.evaluations

    def limit_variance(self, variance: Any, node: Node) -> Any:
        return self.solver.limit_variance(variance, node)

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
        error = widened(gap.detach()).flatten(1).pow(2).mean(1).sqrt().cpu()
        return Step(fine.x + gap if self.extrapolate else fine.x, fine.carry, error)

    def to_data(self, problem: Problem, x: Tensor, t: Node, s: Node, carry: Any, noise: Noise | None) -> Step:
        return self.solver.to_data(problem, x, t, s, carry, noise)


def _middle(problem: Problem, t: Node, s: Node) -> Node:
    return problem.node_of_lam(0.5 * (t.lam + s.lam))
