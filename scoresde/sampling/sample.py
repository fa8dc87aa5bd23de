"""Sampling and encoding: one solve, from noise to data or back.

>>> import scoresde, torch
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
>>> result = sample(target.denoiser(scoresde.VP()), (2,), seeds=range(4), solver="heun", nfe=20)
>>> result.x.shape, result.nfe, result.grid
(torch.Size([4, 2]), 19, 'karras')

A linear solver runs as its ``Program``, which sums states in place. Networks that store their input or reuse output
buffers must therefore copy them. Hooks may keep the states that they receive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import solvers
from solvers import Grid, Hook, InputError, Node, SeededNoise, Solution, Solver
from solvers.loop import parts_of

from ..guidance.base import Guidance
from ..guidance.guide import with_label
from ..io.inputs import Array, Seeds, conditions_of, device_of, draws_of, dtype_of, hooks_of
from ..models.condition_noise import keyed
from ..models.counting import counted
from ..models.evaluation import evaluation
from ..models.faults import checked_model
from ..models.model import LabelShiftRecorder, Model
from ..models.problem import Diffusion
from ..paths.base import ModelLike
from ..posterior.tilted import tilt_default, tilt_of, tilted
from . import cuda_graph as graphs
from .batches import (
    Batching,
    Source,
    batch_of,
    check_source,
    check_start,
)
from .discrete import checked_hooks, discrete_starts
from .failures import Failure, Watch, check_how, failures_of, lost, report, without
from .pictures import save_samples
from .plan import Plan, PlanRequest, choose_plan

PICTURES = 100  # the most pictures in a grid
# the rows of a batch -> its states (n, *) at the first node, and its noise
Start = Callable[[slice], tuple[Tensor, Source]]


@dataclass(frozen=True, repr=False)
class Sample:
    """The result of ``sample`` and ``encode``; ``save`` writes it to a file.

    Attributes:
        x: the samples (B, *).
        nfe: NFE, the number of model evaluations of a sample; the largest of the batch. It is counted, and includes the
            last step.
        nfe_per_sample: the NFE of each sample (B,).
        accepted, rejected: the inner steps of each sample (B,), for solvers that choose them; otherwise 0. (Solvers of
            other libraries do not report theirs.)
        forwards, vjps: evaluations of the network, and vector-Jacobian products through it: means over the samples,
            counted at the network. Guidance and self-conditioning evaluate it several times for one of the model.
        calls: the number of calls of the network, over all batches.
        error: the solver's own estimate of its error (B,), summed over the steps; None if the solver makes none.
        effective: the least effective number of particles (B,) of each sample, of guidance by ``tilt``; else None.
        solver, grid: canonical specs.
        nodes: the nodes of the solve.
        seconds: wall-clock time.
        label_shift: the largest distance by which rounding moved a time label, over all evaluations; None if the
            denoiser does not round its labels.
        seeds: the seed of each sample; empty for an encoding.
        failures: the samples that failed; their rows of ``x`` are NaN.
    """

    x: Tensor
    nfe: int
    nfe_per_sample: Tensor
    accepted: Tensor
    rejected: Tensor
    forwards: float
    vjps: float
    calls: int
    error: Tensor | None
    solver: str
    grid: str
    nodes: tuple[Node, ...]
    seconds: float
    label_shift: float | None = None
    seeds: tuple[int, ...] = ()
    failures: tuple[Failure, ...] = ()
    effective: Tensor | None = None

    def save(
        self,
        path: str | Path,
        low: float = -1.0,
        high: float = 1.0,
        pictures: Sequence[int] | None = None,
        columns: int | None = None,
    ) -> None:
        """Writes the samples to a file, whose ending decides the format.

        ``.npz`` contains x (B, *), the seeds, the NFE of each sample and the effective numbers of particles where there
        are some; ``.npy`` contains x; ``.png`` is a grid of the first 100 samples, which must be pictures (B, 1, H, W)
        or (B, 3, H, W).

        Args:
            low, high: the values of black and white in a picture.
            pictures: the rows of x in the grid of pictures; by default the first 100.
            columns: pictures in a row of the grid, see ``image_grid``.

        Raises:
            InputError: a different ending; samples that are not pictures; a folder that does not exist.
        """
        arrays = {"x": self.x, "nfe": self.nfe_per_sample}
        if self.seeds:
            arrays["seeds"] = torch.tensor(self.seeds)
        if self.effective is not None:
            arrays["effective"] = self.effective
        save_samples(path, arrays, self.x[:PICTURES] if pictures is None else self.x[pictures], low, high, columns)

    def __repr__(self) -> str:
        network = (
            "" if self.forwards == float(self.nfe_per_sample.double().mean()) else f" ({self.forwards:g} forwards)"
        )
        inner = f", {int(self.rejected.sum())} rejected steps" if bool(self.rejected.any()) else ""
        least = "" if self.effective is None else f"\n  at least {float(self.effective.min()):.1f} effective particles"
        return (
            f"Sample: x {tuple(self.x.shape)}, {self.x.dtype}, on {self.x.device}\n"
            f"  {self.solver} on {self.grid}, {len(self.nodes) - 1} steps, {self.nfe} NFE{network}{inner}, "
            f"{self.seconds:.2f} s{least}"
        )


def sample(
    denoiser: ModelLike,
    shape: Sequence[int] | int | None = None,
    seeds: Seeds | None = None,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    forwards: int | None = None,
    plan: Plan | None = None,
    x_init: Array | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    noise: str = "seeded",
    condition: Mapping[str, Array] | None = None,
    guidance: str | Guidance | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    hooks: Hook | Sequence[Hook] = (),
    progress: bool = False,
    cuda_graph: bool = False,
    on_failure: str = "warn",
) -> Sample:
    """Draws one sample per seed; sample i depends only on seed i.

    The network runs in evaluation mode and under the caller's autocast; the result has no graph.

    Args:
        shape: the shape of one sample; by default that of ``x_init``, or of the model if it states one.
        seeds: integers of at least 0, or their number n for 0 to n - 1; by default one for each state of ``x_init``.
        solver, grid, steps, nfe, forwards, t_min, t_max: see ``scoresde.plan``, whose result ``plan`` replaces them.
        x_init: the states (B, *) to start from at t_max, instead of draws of the prior.
        noise: ``seeded``; or ``brownian``, where a seed is one Brownian path for any number of steps and any grid.
        condition: keyword arguments of the network, each (B, *).
        guidance: a name or spec; ``scoresde.guide`` describes it and has further arguments.
        dtype, device, batch_size, progress: see ``Batching``; a dtype and a device may be names.
        hooks: functions that are called with (x, node) after every step, or one such function.
        cuda_graph: launch the whole trajectory of a batch, model included, as one CUDA graph. This needs a linear
            solver, no hooks, no progress bar, and a network that never waits for the device and has fixed shapes.
        on_failure: a sample that is not finite becomes NaN, and one warning names all such samples with their steps and
            noise levels. ``raise`` raises an error instead, ``keep`` only records them in ``failures``.

    Raises:
        InputError: see ``scoresde.plan``; also if there are no seeds, conditions or ``x_init`` have a different length,
            or all samples fail.
    """
    denoiser, solver = with_label(denoiser, guidance, solver)
    model = checked_model(denoiser, x_init is None, space=None)
    request = PlanRequest(solver, grid, steps, nfe, t_min, t_max, forwards)
    made = choose_plan(plan, model, request, default=tilt_default(model, x_init, nfe, forwards))
    given, lengths, x_init = draws_of(seeds, shape, x_init, model.shape)
    check_start(x_init, len(given), lengths, made.nodes[0], model)
    batching = Batching(batch_size, device_of(device), dtype_of(dtype), progress)
    conditions = conditions_of(condition, len(given), batching.device, model.conditions, model.given)
    conditions |= keyed(model.condition_noise, given, batching.device)
    solve = _Solve(model, made, conditions, batching, checked_hooks(hooks_of(hooks), model), cuda_graph, on_failure)
    made.warn_of_width(model.output)
    return solve.run(len(given), solve.starts(given, lengths, check_source(noise, model.space), x_init), given)


def encode(
    denoiser: ModelLike,
    x: Array,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    forwards: int | None = None,
    plan: Plan | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    hooks: Hook | Sequence[Hook] = (),
    progress: bool = False,
    on_failure: str = "warn",
) -> Sample:
    """Moves states x (B, *) from t_min to t_max along the ODE; ``sample(x_init=...)`` moves them back.

    The nodes are those of a sampler in reverse order, without the step to sigma = 0. By default the solver is ``heun``.
    Modes are as in ``sample``.
    The arguments are the same as in ``sample``.

    Raises:
        InputError: see ``scoresde.plan``; also if the solver is stochastic, the data are not finite, or all samples
            fail.
    """
    model, request = checked_model(denoiser), PlanRequest(solver, grid, steps, nfe, t_min, t_max, forwards)
    states, conditions = batch_of("x", x, condition, model)
    made = choose_plan(plan, model, request, default=("heun", None), end_at_t_min=True)
    conditions |= keyed(model.condition_noise, range(len(states)), states.device)
    batching = Batching(batch_size, progress=progress)
    solve = _Solve(model, made.reversed(), conditions, batching, hooks_of(hooks), on_failure=on_failure)
    solve.plan.warn_of_width(model.output)
    return solve.run(len(states), lambda rows: (states[rows], SeededNoise((), states.shape[1:])))


@dataclass(frozen=True)
class _Solve:
    """The solve of ``sample`` and ``encode``: a denoiser, a plan, conditions, batching and hooks."""

    denoiser: Model
    plan: Plan
    conditions: Mapping[str, Tensor]
    batching: Batching
    hooks: Sequence[Hook] = ()
    cuda_graph: bool = False
    on_failure: str = "warn"

    def __post_init__(self) -> None:
        check_how(self.on_failure)
        device = torch.device(self.batching.device)
        if self.cuda_graph and (self.hooks or self.batching.progress):
            raise InputError("cuda_graph=True launches all steps at once: leave out hooks and progress")
        if self.cuda_graph and device.type != "cuda":
            raise InputError(f"cuda_graph=True needs a CUDA device, got {device}")

    def starts(self, seeds: list[int], shape: tuple[int, ...], kind: type[Source], x_init: Tensor | None) -> Start:
        """The function that starts a batch: from ``x_init``, or from draws of the law of unit data at the first node.

        These draws are normal with variance alpha^2 + sigma^2; of discrete states, draws of the process's prior.
        """
        first, dtype, device = self.plan.nodes[0], self.batching.dtype, torch.device(self.batching.device)
        if self.denoiser.space == "discrete":
            return discrete_starts(self.denoiser.sde, seeds, shape, device, x_init)
        scale = float((first.alpha**2 + first.sigma**2) ** 0.5)

        def start(rows: slice) -> tuple[Tensor, Source]:
            source = kind(seeds[rows], shape, dtype, device)
            return scale * source.initial() if x_init is None else x_init[rows].to(device, dtype), source

        return start

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the solve: the plan's, and those where the model divides it."""
        (_, first), *others = self.denoiser.pieces(self.plan.nodes)
        return (*first, *(node for _, places in others for node in places[1:]))

    def run(self, count: int, start: Start, seeds: Sequence[int] = ()) -> Sample:
        """Moves ``count`` samples from their starts along the plan's nodes."""
        if count == 0:
            raise InputError("there are no seeds or no data; at least one sample is needed")
        plan, batches = replace(self.plan, nodes=self.nodes), self.batching.rows(count)
        recorder = LabelShiftRecorder(self.denoiser) if self.denoiser.round_labels else None
        problem = Diffusion(recorder or self.denoiser, dict(self.conditions))
        bar = self.batching.bar(plan.steps * len(batches), str(plan.solver))

        def advance(x: Tensor, node: Node) -> None:
            bar.update()

        began = time.perf_counter()
        own = (advance,) if self.batching.progress else ()
        solve = self._solver(problem)
        # hooks must not be called again to find out where a sample failed, so with hooks each step is watched at once
        watches = [Watch(plan) for _ in batches]
        with evaluation(self.denoiser), bar, torch.no_grad():
            with counted() as cost:
                parts = [
                    solve(problem.select(rows), *start(rows), (*self.hooks, watch, *own) if self.hooks else own)
                    for rows, watch in zip(batches, watches, strict=True)
                ]
            failures = [
                self._failures(problem, start, rows, part, watch)
                for rows, part, watch in zip(batches, parts, watches, strict=True)
            ]
        x, nfe, accepted, rejected = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("x", "nfe", "accepted", "rejected")
        )
        errors = [part.error for part in parts if part.error is not None]
        effective = [part.effective for part in parts if part.effective is not None]
        failed = tuple(failure for part in failures for failure in part)
        if seeds:
            failed = tuple(failure._replace(seed=seeds[failure.sample]) for failure in failed)
        report(failed, count, self.on_failure, f"{plan.solver} on {plan.grid}")
        return Sample(
            x=without(x, lost(x), torch.nan) if failed else x,
            nfe=int(nfe.max()),
            nfe_per_sample=nfe,
            accepted=accepted,
            rejected=rejected,
            forwards=cost.forwards / count,
            vjps=cost.vjps / count,
            calls=cost.calls,
            error=torch.cat(errors) if errors else None,
            effective=torch.cat(effective) if effective else None,
            solver=str(plan.solver),
            grid=plan.grid,
            nodes=self.nodes,
            seconds=time.perf_counter() - began,
            label_shift=None if recorder is None else recorder.largest,
            seeds=tuple(seeds),
            failures=failed,
        )

    def _failures(
        self, problem: Diffusion, start: Start, rows: slice, found: Solution, watch: Watch
    ) -> tuple[Failure, ...]:
        """The samples of a batch that failed; without hooks, solves again to find the steps."""
        bad = lost(found.x)
        if not bool(bad.any()):
            return ()
        if not self.hooks and not all(i in found.failed for i in torch.nonzero(bad).flatten().tolist()):
            self._eager(problem.select(rows), *start(rows), (watch,))
        return failures_of(bad, rows.start, found.failed, watch.reasons)

    def _solver(self, problem: Diffusion) -> Callable[[Diffusion, Tensor, Source, Sequence[Hook]], Solution]:
        """The function that solves a batch: particles, a CUDA graph, the solver's program, or the solver itself."""
        if (rule := tilt_of(self.denoiser)) is not None:
            if self.cuda_graph:
                raise InputError(f"{rule} draws its particles again, which a CUDA graph cannot: leave out cuda_graph")
            solver, nodes = self.plan.solver, self.plan.nodes
            return lambda part, x, noise, hooks: tilted(rule, part, x, solver, nodes, noise, hooks)
        if self.cuda_graph:
            problem.check_solver(self.plan.solver)
            (model, _), *others = self.denoiser.pieces(self.plan.nodes)
            if others:
                raise InputError("cuda_graph=True records one program, but guidance with an interval divides the solve")
            program = self.plan.program(self.denoiser.output)
            graph = graphs.runner(program, model, str(self.plan.solver))
            return lambda part, x, noise, hooks: graph(x, noise, part.conditions)
        return self._eager

    def _eager(self, part: Diffusion, x: Tensor, noise: Source, hooks: Sequence[Hook]) -> Solution:
        """Solves a batch step by step: by the solver's programs, one for each part, or by the solver itself."""
        plan = self.plan
        pieces = parts_of(plan.solver, part, plan.nodes)
        programs = [replace(plan, nodes=tuple(places)).program(self.denoiser.output) for _, places in pieces]
        found: Solution | None = None
        for (piece, _), program in zip(pieces, programs, strict=True):
            if program is None or None in programs:
                break
            solution = program.solve(piece, x if found is None else found.x, noise, hooks)
            found = solution if found is None else solution.after(found)
        return found or solvers.solve(plan.solver, part, x, plan.nodes, noise, hooks, strict=False)
