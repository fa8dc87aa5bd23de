"""Steps versus quality: every solver at every budget, from the same starts, measured against the same reference.

A budget is a number of model evaluations (NFE); a row reports the number that was counted. Rows share their seeds, so
that two rows differ by the solver and not by chance.

>>> import scoresde
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 0.25)
>>> model, data = target.denoiser(scoresde.VP()), target.sample(64, torch.Generator().manual_seed(0))
>>> rows = benchmark(model, data, ["ddim", "heun"], [1, 41], range(64), shape=(2,), progress=False)
>>> [(row.solver, row.nfe, row.steps) for row in rows]
[('ddim', 1, 1), ('ddim', 41, 41), ('heun', 1, 1), ('heun', 41, 21)]
>>> rows[3].error.value < rows[1].error.value
True
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import Grid, InputError, Node, Solver, grids, make, resolve
from solvers.errors import positive_integer
from solvers.program import json_format
from solvers.program.from_file import File
from solvers.wrappers.analytical_first_step import AFS
from solvers.wrappers.base import Wrapper

from ..io.inputs import Array, Seeds, seeds_of, shape_of, tensor_of
from ..io.progress import bar as progress_bar
from ..io.result_files import environment, fingerprint
from ..models.model import as_model
from ..paths.base import ModelLike
from ..sampling.batches import batches_of
from ..sampling.plan import OWN, Plan, PlanRequest, check_space, grid_of
from ..sampling.sample import Sample, sample
from ..sampling.width import WrongWidth
from .metrics import DISTANCES, METRICS, Estimate, Metric, Metrics, by_name, compare, warn_of_few
from .rows import Row
from .sets import Features, mapped
from .states import states_of
from .store import Store, Unfinished, key_of
from .token_metrics import meaningful
from .truth import Truth, check_truth, error_of, exact_end, ode_solution
from .tuned import tuning_of


def benchmark(
    denoiser: ModelLike,
    reference: Array | None,
    solvers: Sequence[str],
    nfe: Sequence[int],
    seeds: Seeds,
    *,
    shape: Sequence[int],
    grid: str | Sequence[str] | None = None,
    truth: Truth | None = None,
    truth_steps: int = 128,
    metrics: Metrics | None = None,
    features: Features | None = None,
    rounding: Callable[[Tensor], Tensor] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    keep: int = 8,
    progress: bool = True,
) -> list[Row]:
    """Compares solvers: one row per solver and budget, and one per adaptive solver, which chooses its evaluations.

    Args:
        reference: real samples (M, *); keep M fixed among tables that you compare. None for none: a row then has only
            its distance to the exact solution, and stochastic solvers have no rows.
        solvers, grid: names or specs; the default grid: a label's, else ``karras``, or ``uniform`` of tokens. Of
            several grids each solver has rows on each, unless it has, or its label names, a grid of its own.
        nfe: budgets of model evaluations; each row takes the most steps that its budget allows.
        seeds, shape, condition, batch_size, dtype, device: as for ``sample``; every row has the same seeds.
        truth, truth_steps: the exact solution; by default ``ode_solution`` in so many steps, 0 for none.
        metrics, features: as for ``metrics.compare``; by default ``DISTANCES``, or ``meaningful``.
        rounding: a function applied to the samples before the metrics, such as rounding to 8 bits.
        keep, progress: samples in a row, 0 for neither samples nor states; whether to show a bar over the rows.

    Raises:
        InputError: an unknown name, fewer than four seeds or reference samples, a budget below 1, or no row for which a
            budget is large enough; see also ``sample``.
    """
    terms = Terms.of(
        denoiser, reference, seeds, shape, truth=truth, truth_steps=truth_steps, metrics=metrics, features=features,
        rounding=rounding, condition=condition, batch_size=batch_size, dtype=dtype, device=device, keep=keep,
    )  # fmt: skip
    rows = measure(terms, terms.jobs(solvers, grid, nfe), progress=progress)
    assert not isinstance(rows, Unfinished)  # this process computes every row
    return rows


class Job(NamedTuple):
    """A solver, its grid and its budget; None for a solver that chooses its evaluations."""

    method: Solver
    rule: Grid
    nfe: int | None

    @property
    def grid(self) -> str:
        """The grid of its row; a solver with fixed nodes needs none."""
        return str(self.rule) if self.method.nodes is None else OWN

    @property
    def key(self) -> str:
        """The name of its row in a ``Store``."""
        return key_of(str(self.method), self.grid, self.nfe)

    def row(self, count: int) -> Row:
        """The row for ``count`` samples, before they are drawn."""
        return Row(
            str(self.method), self.grid, self.nfe, None, None, self.method.stochastic, count,
            free_first_step=_first_is_free(self.method), **tuning_of(self.method, self.nfe)._asdict(),
        )  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """All that the rows of a benchmark share; ``of`` makes one from the arguments of ``benchmark``."""

    denoiser: ModelLike
    reference: Tensor | None
    seeds: list[int]
    shape: tuple[int, ...]
    metrics: Mapping[str, Metric]
    features: Features | None
    rounding: Callable[[Tensor], Tensor] | None
    common: Mapping[str, Any]
    dtype: torch.dtype
    given: Truth | None
    truth_steps: int
    keep: int
    store: Store | None = None

    @classmethod
    def of(
        cls, denoiser: ModelLike, reference: Array | None, seeds: Seeds, shape: Sequence[int], *,
        truth: Truth | None = None, truth_steps: int = 128, metrics: Metrics | None = None,
        features: Features | None = None, rounding: Callable[[Tensor], Tensor] | None = None,
        condition: Mapping[str, Tensor] | None = None, batch_size: int | None = None,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", keep: int = 8,
        store: Store | None = None,
    ) -> Terms:  # fmt: skip
        """Checks the arguments of ``benchmark`` that do not concern single rows."""
        seeds, shape = seeds_of(seeds), shape_of(shape)
        real = None if reference is None else tensor_of("the reference", reference)
        chosen = _metrics(metrics, real, as_model(denoiser, None).space)
        if real is not None and real.shape[1:] != shape:
            raise InputError(f"the reference has samples of shape {tuple(real.shape[1:])}, the model's are {shape}")
        if min(len(seeds), 4 if real is None else len(real)) < 4:
            counts = f"{len(seeds)} seeds" + ("" if real is None else f" and {len(real)} real")
            raise InputError(f"a benchmark needs at least four samples, got {counts}")
        check_truth(truth, len(seeds))
        common = {"condition": condition, "batch_size": batch_size, "device": device}
        return cls(
            denoiser, real, seeds, shape, chosen, features, rounding, common, dtype, truth, truth_steps, keep,
            store,
        )  # fmt: skip

    @cached_property
    def truth(self) -> Truth | None:
        """The exact solution, from the store if it is there; None for none."""
        if self.given is not None or not self.truth_steps:
            return self.given
        if self.store is not None and (kept := self.store.truth()) is not None and len(kept.x) == len(self.seeds):
            return kept
        found = ode_solution(self.denoiser, self.shape, self.seeds, self.truth_steps, **self.common)
        if self.store is not None:
            self.store.put_truth(found)
        return found

    def jobs(self, specs: Sequence[str], grid: str | Sequence[str] | None, nfe: Sequence[int]) -> list[Job]:
        """Every solver on its grids at every budget, without repeats.

        One grid is that of all solvers. Of several, a solver has all, unless it has a grid of its own or a label names
        one ("DPM++ 2M Karras"). A solver with fixed nodes, such as a program in a file, has one row, at the budget that
        it takes.

        Raises:
            InputError: an unknown name; no solver, no grid, no budget, or a budget below 1.
        """
        if not specs or not nfe or not (grid is None or grid):
            raise InputError("a benchmark needs at least one solver, one grid and one number of evaluations")
        for budget in nfe:
            positive_integer("nfe", budget)
        space = as_model(self.denoiser, None).space
        if self.truth_steps:
            positive_integer("truth_steps", self.truth_steps)
        every = [] if grid is None or isinstance(grid, str) else [grids.make(name) for name in grid]
        pairs: dict[tuple[Solver, Grid], None] = {}
        for spec in specs:
            label, named = resolve(spec, space)
            check_space(method := make(label), space)
            own = named or method.own_grid
            rules = every if own is None and method.nodes is None else []
            one = grid if isinstance(grid, str) else own or grid_of(space)
            pairs |= dict.fromkeys((method, rule) for rule in rules or [grids.make(one)])
        budgets = list(dict.fromkeys(nfe))
        return [Job(method, rule, n) for method, rule in pairs for n in _budgets(method, budgets)]

    def plan(self, job: Job) -> Plan:
        """The plan of a row, without a warning of its width: a benchmark shows that as a distance.

        Raises:
            InputError: the budget is too small; there is nothing to compare the samples with; see also
                ``scoresde.plan``.
        """
        if job.method.stochastic and self.reference is None:
            raise InputError("it draws noise, and there are no real samples to compare its samples with")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WrongWidth)
            fixed = job.method.nodes is not None
            request = PlanRequest(job.method) if fixed else PlanRequest(job.method, job.rule, nfe=job.nfe)
            plan = Plan.make(self.denoiser, request)
            plan.warn_of_width(as_model(self.denoiser, None).output)  # once for equal plans, so the solve does not warn
        return plan

    def row(self, job: Job, plan: Plan) -> Row:
        """Draws the samples of a row and scores them; samples that are not finite are the reason of a skipped row."""
        blank = job.row(len(self.seeds))
        try:
            result = sample(
                self.denoiser, self.shape, self.seeds, plan=plan, dtype=self.dtype, on_failure="raise", **self.common
            )
        except InputError as reason:
            return replace(blank, skipped=str(reason))
        x = result.x.cpu()
        scored = self.rounding(x) if self.rounding else x
        truth = None if job.method.stochastic else self.truth
        exact = None if truth is None else exact_end(truth, plan)
        return replace(
            blank,
            grid=plan.grid,
            nfe=result.nfe,
            steps=plan.steps,
            depth=self._depth(result),
            program=program_hash(plan, self.denoiser),
            drawn=fingerprint(x),
            seconds=result.seconds,
            seconds_per_sample=result.seconds / len(x),
            samples=x[: self.keep].clone(),
            states=self._states(plan),
            metrics=self._scores(scored) if self.metrics else {},
            error=None if exact is None else error_of(x, exact),
            environment=environment(self.common["device"], self.dtype),
        )

    def kept(self, job: Job, plan: Plan) -> Row | None:
        """The stored row of a job; None if there is none, or if the file of its solver or grid has changed since."""
        row = None if self.store is None else self.store.get(job.key)
        stale = row is not None and row.program is not None and row.program != program_hash(plan, self.denoiser)
        return None if stale else row

    def _states(self, plan: Plan) -> Tensor | None:
        if not self.keep or as_model(self.denoiser, None).space == "discrete":
            return None
        condition = {name: rows[:1] for name, rows in (self.common["condition"] or {}).items()} or None
        device = self.common["device"]
        return states_of(
            self.denoiser, plan, self.seeds[0], self.shape, condition=condition, dtype=self.dtype, device=device
        )

    def _scores(self, x: Tensor) -> dict[str, Estimate]:
        x, names = mapped("the samples", x, self.features), list(self.metrics)
        library = all(name in METRICS for name in names)
        return compare(x, self._mapped_reference, names if library else self.metrics)

    @cached_property
    def _mapped_reference(self) -> Tensor:
        assert self.reference is not None  # without it there are no metrics
        warn_of_few(list(self.metrics), self.features, len(self.seeds), len(self.reference))
        return mapped("the reference", self.reference, self.features)

    def _depth(self, result: Sample) -> int:
        return math.ceil(result.calls / len(batches_of(len(self.seeds), self.common["batch_size"])))


def measure(
    terms: Terms, jobs: Sequence[Job], share: tuple[int, int] = (1, 1), progress: bool = True
) -> list[Row] | Unfinished:
    """The rows of jobs, in order: those of the store, and the others, which are computed and put into it.

    Args:
        share: (k, n): compute only every n-th row, from the k-th.

    Returns:
        The rows, or ``Unfinished`` while rows of other processes are missing. The environment of a row is only what
        differs from that of the first one.

    Raises:
        InputError: no budget is large enough for any row; the store belongs to a different benchmark.
    """
    plans = _plans(terms, jobs)
    store, rows = terms.store, dict[int, Row]()
    for place, (job, plan) in enumerate(zip(jobs, plans, strict=True)):
        if isinstance(plan, str):
            rows[place] = replace(job.row(len(terms.seeds)), skipped=plan)
        elif (kept := terms.kept(job, plan)) is not None:
            rows[place] = kept
    mine = [place for place in range(len(jobs)) if place not in rows and place % share[1] == share[0] - 1]
    try:
        for place in (bar := progress_bar(mine, desc="benchmark", disable=not progress)):
            job, plan = jobs[place], plans[place]
            assert isinstance(plan, Plan)
            bar.set_postfix_str(f"{job.method}, NFE {job.nfe or 'adaptive'}")
            rows[place] = terms.row(job, plan)
            if store is not None:
                store.put(job.key, rows[place])
    except KeyboardInterrupt:
        note = f"{len(rows)} of {len(jobs)} rows are in {store.folder}; the same command resumes" if store else ""
        raise KeyboardInterrupt(note) from None
    if store is not None and len(rows) < len(jobs):  # other processes may have ended meanwhile
        for place, (job, plan) in enumerate(zip(jobs, plans, strict=True)):
            if place not in rows and isinstance(plan, Plan) and (kept := terms.kept(job, plan)) is not None:
                rows[place] = kept
    if len(rows) < len(jobs):
        return Unfinished(len(rows), len(jobs))
    return [rows[place] for place in range(len(jobs))]


def _plans(terms: Terms, jobs: Sequence[Job]) -> list[Plan | str]:
    """The plan of every job, or the reason why it has none.

    Raises:
        InputError: no job has a plan.
    """
    found: list[Plan | str] = []
    seen = dict[tuple[Solver, tuple[Node, ...]], Job]()
    for job in jobs:
        try:
            plan = terms.plan(job)
            first = seen.setdefault((plan.solver, plan.nodes), job)
            found.append(plan if first == job else _same_steps(job, first))
        except InputError as reason:
            found.append(str(reason))
    if all(isinstance(plan, str) for plan in found):
        raise InputError(f"no row can be computed: {found[0]}")
    return found


def _same_steps(job: Job, first: Job) -> str:
    """The reason why a job has no row: it has the nodes of an earlier one."""
    others = [f"with nfe={first.nfe}"] if job.nfe != first.nfe else []
    others += [f"on {first.grid}"] if job.grid != first.grid else []
    return f"the same steps as {' '.join(others)}"


def _metrics(metrics: Metrics | None, reference: Tensor | None, space: str) -> dict[str, Metric]:
    """The metrics that are asked for, or the default ones; without a reference none.

    Raises:
        InputError: an unknown metric, or one that has no reference.
    """
    if reference is None:
        if metrics:
            raise InputError(f"{next(iter(metrics))} compares samples with real ones, and there is no reference")
        return {}
    return by_name(metrics or (meaningful(reference) if space == "discrete" else tuple(DISTANCES)))


def _budgets(method: Solver, budgets: Sequence[int]) -> Sequence[int | None]:
    if isinstance(method, File):
        return [method.program.nfe]
    return [None] if method.adaptive or method.nodes is not None else budgets


def _first_is_free(method: Solver) -> bool:
    """Whether a formula replaces the first evaluation, also inside of a wrapper."""
    return isinstance(method, AFS) or (isinstance(method, Wrapper) and _first_is_free(method.inner))


def program_hash(plan: Plan, denoiser: ModelLike) -> str | None:
    """The first 16 digits of the SHA-256 of the program of a plan as JSON; None if it has no program.

    A program from a file is named by its solver, so that its hash does not depend on where the file is.
    """
    program = plan.program(as_model(denoiser, None).output) if plan.solver.linear else None
    if program is None:
        return None
    named = replace(program, solver=_without_path(program.solver, plan.solver))
    return hashlib.sha256(json_format.write(named).encode()).hexdigest()[:16]


def _without_path(spec: str, method: Solver) -> str:
    """A solver's spec with the name in a program's file in place of the file, also inside of a wrapper."""
    if isinstance(method, File):
        return spec.replace(str(method), method.program.solver)
    return _without_path(spec, method.inner) if isinstance(method, Wrapper) else spec
