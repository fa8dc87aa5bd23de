"""Sampling and encoding: one solve, from noise to data or back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

import solvers
from solvers import BrownianNoise, Grid, Hook, InputError, Node, SeededNoise, Solver
from solvers.errors import unknown

from . import graphs
from .batches import batches_of, check_batch, check_conditions, check_finite
from .denoiser import Denoiser
from .plan import Plan
from .problem import Diffusion
from .sde import Denoises

Source = SeededNoise | BrownianNoise
SOURCES: dict[str, type[SeededNoise] | type[BrownianNoise]] = {"seeded": SeededNoise, "brownian": BrownianNoise}


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
    solver: str | Solver = "dpmpp_2m",
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
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
        denoiser: the model.
        shape: of one sample.
        seeds: integers of at least 0.
        solver, grid: names or specs, see ``solvers.names()`` and ``solvers.grids.names()``.
        steps, nfe: the length of the grid, or a budget of model evaluations.
        x_init: the states (B, *) to start from at t_max, instead of draws of the prior.
        t_min, t_max: a part of the SDE's range.
        noise: ``seeded``, or ``brownian``: the same path of a seed at any number of steps and on any grid.
        condition: keyword arguments of the network, each (B, *).
        batch_size: how many samples to carry at once; it does not change them.
        hooks: called with (x, node) after every step.
        progress: show a bar over the steps.
        cuda_graph: launch each batch's whole trajectory as one CUDA graph, model included: for linear solvers, without
            hooks and bar, and networks that a graph can hold (no waiting for the device, no shapes that change).

    A linear solver runs as its ``Program``, which adds up states in place: a network that keeps the tensor that it was
    shown, or writes over one that it has answered with, has to copy it. Hooks may keep theirs.

    >>> import scoresde, torch
    >>> target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
    >>> result = sample(target.denoiser(scoresde.VP()), (2,), seeds=range(4), solver="heun", nfe=20)
    >>> result.x.shape, result.nfe, result.grid
    (torch.Size([4, 2]), 19, 'karras')

    Raises:
        InputError: see ``Plan.make``; also no seeds, conditions or ``x_init`` of another length, and samples that are
            not finite.
    """
    plan = Plan.make(denoiser, solver, grid, steps, nfe, t_min, t_max)
    if not isinstance(seeds, Iterable) or not isinstance(shape, Iterable):
        raise InputError(f"seeds and shape are lists of integers, got {seeds!r} and {shape!r}")
    seeds, shape = list(seeds), tuple(shape)
    for length in shape:
        solvers.errors.positive_integer("every length in shape", length)
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a float type, got {dtype}")
    start = torch.device(device)
    if x_init is not None:
        if tuple(x_init.shape) != (len(seeds), *shape):
            raise InputError(f"x_init is {tuple(x_init.shape)}, for {len(seeds)} seeds of shape {shape}")
        check_batch("x_init", x_init)
    scale = plan.nodes[0]

    def initial(rows: slice, source: Source) -> Tensor:
        if x_init is not None:
            return x_init[rows].to(start, dtype)
        return float((scale.alpha**2 + scale.sigma**2) ** 0.5) * source.initial()

    if noise not in SOURCES:
        raise unknown("noise", noise, SOURCES)

    def draws(rows: slice) -> Source:
        return SOURCES[noise](seeds[rows], shape, dtype, start)

    if cuda_graph and (hooks or progress):
        raise InputError("cuda_graph=True launches all steps at once: leave out hooks and progress")
    if cuda_graph and start.type != "cuda":
        raise InputError(f"cuda_graph=True needs a CUDA device, got {start}")
    return _run(denoiser, plan, len(seeds), initial, draws, condition, batch_size, hooks, progress, cuda_graph)


def encode(
    denoiser: Denoises,
    x: Tensor,
    solver: str | Solver = "heun",
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    hooks: Sequence[Hook] = (),
    progress: bool = False,
) -> Sample:
    """Carries states x (B, *) at t_min to t_max along the ODE; ``sample(x_init=...)`` brings them back.

    The grid is the sampler's, run backwards, without a step to sigma = 0.

    Raises:
        InputError: see ``Plan.make``; also a stochastic solver, and data or codes that are not finite.
    """
    check_batch("x", x)
    plan = Plan.make(denoiser, solver, grid, steps, nfe, t_min, t_max, stop=True)
    plan = dataclasses.replace(plan, nodes=plan.nodes[::-1])

    def initial(rows: slice, source: Source) -> Tensor:
        return x[rows]

    def draws(rows: slice) -> Source:
        return SeededNoise((), x.shape[1:])

    return _run(denoiser, plan, len(x), initial, draws, condition, batch_size, hooks, progress)


def _run(
    denoiser: Denoises,
    plan: Plan,
    count: int,
    initial: Callable[[slice, Source], Tensor],
    draws: Callable[[slice], Source],
    condition: Mapping[str, Tensor] | None,
    batch_size: int | None,
    hooks: Sequence[Hook],
    progress: bool,
    cuda_graph: bool = False,
) -> Sample:
    if count == 0:
        raise InputError("nothing to do: no seeds or no data")
    check_conditions(condition, count)
    shifts: list[float] | None = None
    if isinstance(denoiser, Denoiser) and denoiser.round_labels:
        shifts = []
        denoiser = dataclasses.replace(denoiser, shifts=shifts)
    problem = Diffusion(denoiser, dict(condition or {}))
    batches = batches_of(count, batch_size)
    began = time.perf_counter()
    parts = []
    program = plan.program(denoiser)
    graphed = graphs.runner(program, denoiser, str(plan.solver)) if cuda_graph else None
    bar = tqdm(total=(len(plan.nodes) - 1) * len(batches), desc=str(plan.solver), disable=not progress, leave=False)

    def advance(x: Tensor, node: Node) -> None:
        bar.update()

    if progress:
        hooks = (*hooks, advance)
    with bar, torch.no_grad():
        for rows in batches:
            source = draws(rows)
            x = initial(rows, source)
            part = problem.select(rows)
            if graphed is not None:
                parts.append(graphed(x, source, part.conditions))
            elif program is None:
                parts.append(solvers.solve(plan.solver, part, x, plan.nodes, source, hooks))
            else:
                parts.append(program.solve(part, x, source, hooks))
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
        label_shift=None if shifts is None else max(shifts, default=0.0),
    )
