"""Programs tuned to a model: every number of a linear solver, moved down the gradient of its error.

The start is a solver on the grid tuned for it. Then nodes, the time labels that the network receives, and coefficients
move by the gradient of a loss at the end, through the frozen model; theory's coefficients follow the nodes, and learned
additions to them start at zero (Wang et al. 2025, arXiv:2510.17699). The numbers with the least loss on validation
samples are returned.

>>> import torch
>>> from solvers.conformance.problems import VP, Mixture
>>> from solvers.tuning.grids import trajectory
>>> problem, starts = Mixture(VP), torch.linspace(-2, 2, 192, dtype=torch.float64).view(64, 3)
>>> tuning, validation, held_out = (trajectory(problem, x, VP, "logsnr(end=zero)", 48) for x in starts.T.unsqueeze(2))
>>> tuned = tune_program("ddim", problem, 4, tuning, validation=validation, held_out=held_out, iterations=60)
>>> tuned.nfe, tuned.errors["tuned program"].rms < 0.7 * tuned.errors["start"].rms
(4, True)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, positive_integer
from ..files import write_document
from ..noise.seeded import generator
from ..program.trace import trace
from ..time_grids.base import Grid, grids
from ..types.problem import Problem
from ..types.solver import Solver, solvers
from .descent import Descent, Progress, Rule, read_checkpoint
from .grids import Trajectory, tunable
from .losses import Distance, TuningLoss, bound, tuning_losses
from .numbers import FreeNumbers, Theory, groups_of
from .samples import Samples, digest
from .tuned_program import START, Costs, TunedProgram


def tune_program(
    solver: str | Solver | Sequence[str | Solver],
    problem: Problem,
    nfe: int,
    reference: Trajectory,
    *,
    validation: Trajectory,
    held_out: Trajectory | None = None,
    grid: str | Grid | None = None,
    free: str | Sequence[str] = "all",
    theory: bool = True,
    loss: str | TuningLoss = "squared",
    features: Callable[[Tensor], Tensor] | None = None,
    data: Tensor | None = None,
    iterations: int = 400,
    batch: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TunedProgram:
    """The program with ``nfe`` model evaluations that comes closest to the truth, and how close that is.

    Args:
        solver: a deterministic linear one; of several, the best on its grid on the validation samples is the start.
        problem: the path and the model, differentiable by autograd.
        nfe: the budget of a solve.
        reference: the truth on the tuning samples, see ``trajectory``: hundreds of them.
        validation: the truth on other samples, which decide what is returned, and when the tuning ends.
        held_out: the truth on samples that are measured only.
        grid: where the nodes start; None tunes it first, by ``tune_grid``.
        free: what moves: some of "nodes", "labels", "predictions" and "states", or "all", "ld3" or "s4s"; see
            ``numbers``.
        theory: whether the solver's coefficients follow the nodes, in addition to learned changes.
        loss: a loss by name, see ``losses``.
        features: a differentiable map of states (n, *), in whose space the loss compares.
        data: samples (M, *), for losses that compare sets.
        iterations: the most iterations.
        batch: how many of the reference's samples an iteration uses; all if None. ``seed`` draws them.
        checkpoint: a file, written with every validation, from which the same call continues to the same bits.
        progress: receives a ``Progress`` after every validation, one every ten iterations.

    Raises:
        InputError: the solver draws noise, chooses its own steps or has no ``Program``; nfe is too small for it; a
            reference has another path, range or shape, or shares samples with another one; a name is unknown; the loss
            needs data; the model has no gradients; the checkpoint belongs to a different tuning.
    """
    samples = Samples(problem, nfe, reference, validation, held_out)
    count = reference.states.shape[1] if batch is None else batch
    options = _Options(groups_of(free), bool(theory), iterations, count, seed)
    chosen = tuning_losses.make(loss)
    distances = [bound(chosen, known.states[-1], features, data) for known in (reference, validation)]
    facts = {"loss": str(chosen), "features": features is not None, "data": None if data is None else digest(data)}
    return _tuned(samples, _methods(solver), grid, options, distances, facts, checkpoint, progress)


@dataclass(frozen=True)
class _Options:
    free: tuple[str, ...]
    theory: bool
    iterations: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        positive_integer("iterations", self.iterations)
        positive_integer("batch", self.batch)
        generator(self.seed)


def _tuned(
    samples: Samples,
    methods: list[Solver],
    grid: str | Grid | None,
    options: _Options,
    distances: Sequence[Distance],
    facts: Mapping[str, Any],
    checkpoint: str | Path | None,
    progress: Callable[[Progress], None] | None,
) -> TunedProgram:
    """The program of a tuning that starts, or continues from its checkpoint; ``facts`` identify the loss."""
    began = time.perf_counter()
    given = {"solver": [str(m) for m in methods], "nfe": samples.nfe, "grid": grid and str(grids.make(grid))}
    facts = {**given, **vars(options), "free": list(options.free), **facts, "samples": samples.digests()}
    known = None if checkpoint is None else read_checkpoint(checkpoint, facts)
    start = _start(samples, methods, grid) if known is None else known["start"]
    theory = Theory(solvers.make(start["solver"]), samples.schedule, *samples.ends)
    numbers = FreeNumbers(theory, tuple(start["levels"]), options.free, options.theory)
    if known is None:
        state = Descent.new(numbers.count)
        state.seconds, state.forwards = time.perf_counter() - began, samples.count
    else:
        state = Descent.of(known)
    rule = _rule(samples, numbers, distances, options, progress)
    if checkpoint is not None:
        rule.save = lambda now: write_document(checkpoint, "checkpoint", now.document({"of": facts, "start": start}))
    return _result(samples, numbers, rule.run(state, resumed=known is not None), str(facts["loss"]))


def _methods(given: str | Solver | Sequence[str | Solver]) -> list[Solver]:
    """The solvers to start from, each checked."""
    listed = [given] if isinstance(given, (str, Solver)) else list(given)
    if not listed:
        raise InputError("solver is empty: name at least one")
    return [tunable(one) for one in listed]


def _start(samples: Samples, methods: list[Solver], grid: str | Grid | None) -> dict[str, Any]:
    """The solver that is best on its grid on the validation samples, and log(sigma / alpha) of the inner nodes."""
    found = []
    for method in methods:
        nodes = samples.place(method, grid)
        error = float(samples.validation.errors(method, samples.problem, nodes).mean())
        found.append((error, {"solver": str(method), "levels": [-node.lam for node in nodes[1:-1]]}))
    return min(found, key=lambda one: one[0])[1]


def _rule(
    samples: Samples,
    numbers: FreeNumbers,
    distances: Sequence[Distance],
    options: _Options,
    progress: Callable[[Progress], None] | None,
) -> Rule:
    """What the descent minimises, and for how long."""
    count, every = samples.reference.states.shape[1], torch.arange(samples.validation.states.shape[1])

    def loss(at: Tensor, rows: Tensor) -> Tensor:
        outcome = samples.outcome(numbers.table(at), samples.reference, rows)
        return distances[0](outcome, rows.to(outcome.device))

    @torch.no_grad()
    def validate(at: Tensor) -> float:
        with suppress(InputError):  # a model that returns what is not finite
            outcome = samples.outcome(numbers.table(at), samples.validation, every)
            value = float(distances[1](outcome, every.to(outcome.device)))
            return value if math.isfinite(value) else math.inf
        return math.inf

    return Rule(
        loss=loss, validate=validate, samples=(count, min(options.batch, count)), iterations=options.iterations,
        seed=options.seed, nfe=numbers.origin.nfe,
        save=lambda state: None, hook=progress, forwards=lambda: samples.count,
    )  # fmt: skip


def _result(samples: Samples, numbers: FreeNumbers, state: Descent, loss: str) -> TunedProgram:
    """The program of the best numbers, and what it is compared with."""
    theory, table = numbers.theory, numbers.table(state.best_numbers)
    name = f"{theory.solver}, tuned at {table.nfe} NFE"
    program = table.program(samples.schedule, samples.inner.output or "x0", name)
    start = theory.nodes(numbers.levels)
    grid = trace(theory.solver, start, samples.schedule)
    errors = samples.errors(program, table, {START: grid, **samples.others(theory.solver)})
    parts = list(samples.parts.values())
    sizes = [known.states.shape[1] for known in parts]
    return TunedProgram(
        program=program, table=table, solver=str(theory.solver), start=tuple(node.ratio for node in start),
        nfe=table.nfe, free=numbers.free, loss=loss, samples=(sizes[0], sizes[1], sum(sizes[2:])),
        tuning=errors["reference"], validation=errors["validation"], held_out=errors.get("held_out", {}),
        costs=Costs(state.seconds, state.forwards, state.vjps, sum(known.evaluations for known in parts)),
        iterations=state.iteration,
    )  # fmt: skip
