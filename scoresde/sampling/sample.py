"""Sampling and encoding: one solve, from noise to data or back.

>>> import scoresde, torch
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
>>> result = sample(target.denoiser(scoresde.VP()), (2,), seeds=range(4), solver="heun", nfe=20)
>>> result.x.shape, result.nfe, result.grid
(torch.Size([4, 2]), 19, 'karras')

A linear solver runs as its ``Program``, which adds up states in place: a network that keeps the tensor that it was
shown, or writes over one that it has answered with, has to copy it. Hooks may keep theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import solvers
from solvers import BrownianNoise, Grid, Hook, InputError, Node, SeededNoise, Solution, Solver
from solvers.errors import unknown

from ..models.denoises import Model, WithLabelShift, adapted
from ..models.problem import Diffusion
from ..paths.base import Denoises
from . import cuda_graph as graphs
from .batches import Batching, check_batch, check_conditions, check_draws, check_finite, check_start
from .plan import Plan, planned

Source = SeededNoise | BrownianNoise
SOURCES: dict[str, type[SeededNoise] | type[BrownianNoise]] = {"seeded": SeededNoise, "brownian": BrownianNoise}
# the rows of a batch -> its states (n, *) at the first node, and its noise
Start = Callable[[slice], tuple[Tensor, Source]]


@dataclass(frozen=True)
class Sample:
    """What ``sample`` and ``encode`` return.

    Attributes:
        x: the samples (B, *).
        nfe: model evaluations per sample, the largest of the batch; counted, the last step included.
        nfe_per_sample: (B,).
        accepted, rejected: inner steps per sample (B,) of solvers that choose their own, otherwise 0. (The black boxes
            of other libraries do not tell theirs.)
        calls: how often the model was called, over all batches.
        error: the solver's own estimate of its error (B,), summed over the steps; None from solvers that make none.
        solver, grid: canonical specs.
        nodes: where the solve went.
        seconds: wall-clock time.
        label_shift: how far a denoiser that rounds its labels moved one at most, over all that the solve asked; None
            where it does not round.
    """

    x: Tensor
    nfe: int
    nfe_per_sample: Tensor
    accepted: Tensor
    rejected: Tensor
    calls: int
    error: Tensor | None
    solver: str
    grid: str
    nodes: tuple[Node, ...]
    seconds: float
    label_shift: float | None = None


def sample(
    denoiser: Denoises,
    shape: Sequence[int],
    seeds: Iterable[int],
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    x_init: Tensor | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    noise: str = "seeded",
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    hooks: Sequence[Hook] = (),
    progress: bool = False,
    cuda_graph: bool = False,
) -> Sample:
    """Draws one sample per seed; sample i depends on seed i alone.

    Args:
        shape: of one sample.
        seeds: integers of at least 0.
        solver, grid, steps, nfe, t_min, t_max: see ``scoresde.plan``; by default the solver is ``dpmpp_2m``.
        plan: in their place, what ``scoresde.plan`` made of them.
        x_init: the states (B, *) to start from at t_max, instead of draws of the prior.
        noise: ``seeded``, or ``brownian``: the same path of a seed at any number of steps and on any grid.
        condition: keyword arguments of the network, each (B, *).
        dtype, device, batch_size, progress: see ``Batching``.
        hooks: called with (x, node) after every step.
        cuda_graph: launch each batch's whole trajectory as one CUDA graph, model included: for linear solvers, without
            hooks and bar, and networks that a graph can hold (no waiting for the device, no shapes that change).

    Raises:
        InputError: see ``scoresde.plan``; also no seeds, conditions or ``x_init`` of another length, and samples that
            are not finite.
    """
    made = planned(plan, denoiser, solver, grid, steps, nfe, t_min, t_max, default=("dpmpp_2m", None))
    seeds, shape = check_draws(seeds, shape)
    check_start(x_init, len(seeds), shape)
    if noise not in SOURCES:
        raise unknown("noise", noise, SOURCES)
    solve = _Solve(
        adapted(denoiser), made, condition or {}, Batching(batch_size, torch.device(device), dtype, progress), hooks,
        cuda_graph,
    )  # fmt: skip
    return solve.run(len(seeds), solve.starts(seeds, shape, SOURCES[noise], x_init))


def encode(
    denoiser: Denoises,
    x: Tensor,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    hooks: Sequence[Hook] = (),
    progress: bool = False,
) -> Sample:
    """Carries states x (B, *) at t_min to t_max along the ODE; ``sample(x_init=...)`` brings them back.

    The grid is the sampler's, run backwards, without a step to sigma = 0; by default the solver is ``heun``. Arguments
    as of ``sample``.

    Raises:
        InputError: see ``scoresde.plan``; also a stochastic solver, and data or codes that are not finite.
    """
    check_batch("x", x)
    made = planned(plan, denoiser, solver, grid, steps, nfe, t_min, t_max, default=("heun", None), stop=True)
    solve = _Solve(adapted(denoiser), made.reversed(), condition or {}, Batching(batch_size, progress=progress), hooks)
    return solve.run(len(x), lambda rows: (x[rows], SeededNoise((), x.shape[1:])))


@dataclass(frozen=True)
class _Solve:
    """What ``sample`` and ``encode`` share: a denoiser, a plan, and how samples are carried."""

    denoiser: Model
    plan: Plan
    conditions: Mapping[str, Tensor]
    batching: Batching
    hooks: Sequence[Hook] = ()
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        device = torch.device(self.batching.device)
        if self.cuda_graph and (self.hooks or self.batching.progress):
            raise InputError("cuda_graph=True launches all steps at once: leave out hooks and progress")
        if self.cuda_graph and device.type != "cuda":
            raise InputError(f"cuda_graph=True needs a CUDA device, got {device}")

    def starts(self, seeds: list[int], shape: tuple[int, ...], kind: type[Source], x_init: Tensor | None) -> Start:
        """The starts of seeds: given ones, or draws with the standard deviation of unit data at the first node."""
        first, dtype, device = self.plan.nodes[0], self.batching.dtype, torch.device(self.batching.device)
        scale = float((first.alpha**2 + first.sigma**2) ** 0.5)

        def start(rows: slice) -> tuple[Tensor, Source]:
            source = kind(seeds[rows], shape, dtype, device)
            return scale * source.initial() if x_init is None else x_init[rows].to(device, dtype), source

        return start

    def run(self, count: int, start: Start) -> Sample:
        """Carries ``count`` samples from their starts along the plan's nodes."""
        if count == 0:
            raise InputError("nothing to do: no seeds or no data")
        check_conditions(self.conditions, count)
        plan, batches = self.plan, self.batching.rows(count)
        shifted = WithLabelShift(self.denoiser) if self.denoiser.round_labels else None
        problem = Diffusion(shifted or self.denoiser, dict(self.conditions))
        bar = self.batching.bar(plan.steps * len(batches), str(plan.solver))

        def advance(x: Tensor, node: Node) -> None:
            bar.update()

        began = time.perf_counter()
        solve = self._solver(problem, (*self.hooks, advance) if self.batching.progress else self.hooks)
        with bar, torch.no_grad():
            parts = [solve(problem.select(rows), *start(rows)) for rows in batches]
        x, nfe, accepted, rejected = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("x", "nfe", "accepted", "rejected")
        )
        errors = [part.error for part in parts if part.error is not None]
        check_finite(x, plan)
        return Sample(
            x=x,
            nfe=int(nfe.max()),
            nfe_per_sample=nfe,
            accepted=accepted,
            rejected=rejected,
            calls=sum(part.calls for part in parts),
            error=torch.cat(errors) if errors else None,
            solver=str(plan.solver),
            grid=plan.grid,
            nodes=plan.nodes,
            seconds=time.perf_counter() - began,
            label_shift=None if shifted is None else shifted.largest,
        )

    def _solver(self, problem: Diffusion, hooks: Sequence[Hook]) -> Callable[[Diffusion, Tensor, Source], Solution]:
        """How a batch is solved: as a CUDA graph, by the solver's program, or by the solver itself."""
        plan = self.plan
        program = plan.program(self.denoiser.output)
        if self.cuda_graph:
            graph = graphs.runner(program, problem.denoiser, str(plan.solver))
            return lambda part, x, noise: graph(x, noise, part.conditions)
        if program is not None:
            return lambda part, x, noise: program.solve(part, x, noise, hooks)
        return lambda part, x, noise: solvers.solve(plan.solver, part, x, plan.nodes, noise, hooks)
