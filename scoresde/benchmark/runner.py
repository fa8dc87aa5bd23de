"""Steps versus quality: every solver at every budget, from the same starts, measured against the same reference.

A budget is a number of model evaluations (NFE); a row reports the number that was counted. Rows share their seeds, so
that two rows differ by the solver and not by chance. Deterministic solvers all approximate the same map, that of the
probability-flow ODE. Their distance to its exact solution is their error, and it distinguishes two solvers long before
a distance between sample sets does.

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

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from solvers import Grid, InputError, Node, Solver, generator, grids, make, resolve, solve
from solvers.errors import positive_integer, shown
from solvers.files import read_json

from ..io.inputs import Array, Seeds, seeds_of, shape_of, tensor_of
from ..io.progress import bar as progress_bar
from ..io.result_files import environment, write_csv, write_json
from ..models.evaluation import evaluation
from ..models.model import as_model
from ..models.problem import Diffusion
from ..paths.base import ModelLike
from ..sampling.batches import batches_of
from ..sampling.plan import Plan, PlanRequest, check_space, grid_of
from ..sampling.sample import Sample, sample
from ..sampling.width import WrongWidth
from .metrics import DISTANCES, METRICS, Estimate, Features, check_names, compare
from .token_metrics import meaningful

_RESAMPLES = 400  # for the interval of an error; each costs a mean of N numbers
_NESTED = ("metrics", "error", "samples")  # fields of a row that are not columns


@dataclass(frozen=True)
class Row:
    """The result of one solver at one budget.

    Attributes:
        solver, grid: canonical specs.
        nfe_budget: the budget; None for an adaptive solver, which has none.
        nfe: model evaluations per sample, as counted; None if the row was skipped.
        steps: steps of the grid, including a last step to sigma = 0.
        stochastic: whether the solver draws noise.
        n_samples: how many samples were drawn.
        metrics: distances from the reference, by name.
        error: root-mean-square distance per dimension to the exact solution; None for stochastic solvers.
        seconds, seconds_per_sample: wall-clock time.
        skipped: the reason why the row has no numbers, or "": a budget below the cost of one step or without a step
            more than a smaller one, a grid whose nodes coincide, or samples that are not finite.
        samples: the first few samples (K, *), on the CPU; not written to result files.
    """

    solver: str
    grid: str
    nfe_budget: int | None
    nfe: int | None
    steps: int | None
    stochastic: bool
    n_samples: int
    metrics: dict[str, Estimate] = field(default_factory=dict)
    error: Estimate | None = None
    seconds: float | None = None
    seconds_per_sample: float | None = None
    skipped: str = ""
    samples: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Truth:
    """The exact solution of the probability-flow ODE from the starts of some seeds.

    Attributes:
        x: the solution after the last step to sigma = 0, E[x0 | x_t] at t_min (N, *).
        at_t_min: the solution at t_min (N, *).
        error: root-mean-square distance per dimension between ``at_t_min`` and a solve with half as many steps. It
            exceeds the error of ``at_t_min`` if twice the steps at least halve that error.
        nfe: model evaluations per sample, for all solves together.
    """

    x: Tensor = field(repr=False)
    at_t_min: Tensor = field(repr=False)
    error: float
    nfe: int


def ode_solution(
    denoiser: ModelLike,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int = 128,
    *,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> Truth:
    """Solves the ODE accurately from the same starts as the samplers.

    Uses Heun's method with n, n / 2 and n / 4 equal steps of log(alpha / sigma). Richardson extrapolation
    (4 x_n - x_{n/2}) / 3 removes the leading error; the same with n / 2 and n / 4 steps estimates the remaining error.

    Args:
        shape: the shape of one sample.
        seeds: one per sample.
        steps: n, from t_max to t_min; a multiple of four.
        condition, device, batch_size: as for ``sample``.
        dtype: the dtype of the state.

    Raises:
        InputError: steps is not a positive multiple of four; see also ``sample``.
    """
    if positive_integer("steps", steps) % 4:
        raise InputError(f"the steps of the exact solution must be a multiple of four, got {steps}")

    plan = Plan.make(denoiser, PlanRequest("heun", "logsnr", steps))
    fine, half, quarter = (
        sample(
            denoiser, shape, seeds, plan=plan.in_steps(steps // part),
            condition=condition, dtype=dtype, device=device, batch_size=batch_size, on_failure="raise",
        )
        for part in (1, 2, 4)
    )  # fmt: skip
    at_t_min = (4 * fine.x - half.x) / 3
    coarser = (4 * half.x - quarter.x) / 3
    x = _to_data(denoiser, at_t_min, fine.nodes[-1], condition or {}, batch_size)
    error = float((at_t_min - coarser).double().square().mean().sqrt())
    return Truth(x.cpu(), at_t_min.cpu(), error, fine.nfe + half.nfe + quarter.nfe + 1)


def _to_data(
    denoiser: ModelLike, x: Tensor, node: Node, condition: Mapping[str, Tensor], batch_size: int | None
) -> Tensor:
    """The samplers' last step, from x (N, *) at ``node`` to sigma = 0."""
    problem, method = Diffusion(denoiser, condition), make("heun")
    ends = (node, denoiser.sde.clean)
    with evaluation(denoiser), torch.no_grad():
        return torch.cat([solve(method, problem.select(b), x[b], ends).x for b in batches_of(len(x), batch_size)])


def benchmark(
    denoiser: ModelLike,
    reference: Array,
    solvers: Sequence[str],
    nfe: Sequence[int],
    seeds: Seeds,
    *,
    shape: Sequence[int],
    grid: str | None = None,
    truth: Truth | None = None,
    truth_steps: int = 128,
    metrics: Sequence[str] | None = None,
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
        reference: real samples (M, *); keep M fixed among tables that you compare.
        solvers, grid: names or specs; the default grid: a label's, else ``karras``, or ``uniform`` of tokens.
        nfe: budgets of model evaluations; each row takes the most steps that its budget allows.
        seeds, shape, condition, batch_size, dtype, device: as for ``sample``; every row has the same seeds.
        truth, truth_steps: the exact solution; by default ``ode_solution`` in so many steps, 0 for none.
        metrics, features: as for ``metrics.compare``; by default ``DISTANCES``, or ``meaningful``.
        rounding: a function applied to the samples before the metrics, such as rounding to 8 bits.
        keep, progress: samples in a row; whether to show a bar over the rows.

    Raises:
        InputError: an unknown name, fewer than four seeds or reference samples, a budget below 1; see also ``sample``.
    """
    seeds, shape, reference = seeds_of(seeds), shape_of(shape), tensor_of("the reference", reference)
    space = as_model(denoiser, None).space
    check_names(metrics := metrics or (meaningful(reference) if space == "discrete" else tuple(DISTANCES)))
    _check(reference, solvers, nfe, seeds, shape)
    jobs = _jobs(solvers, grid, nfe, space)
    common: dict[str, Any] = {"condition": condition, "batch_size": batch_size, "device": device}
    if truth is None and truth_steps and not all(job.method.stochastic for job in jobs):
        truth = ode_solution(denoiser, shape, seeds, truth_steps, **common)
    _check_truth(truth, len(seeds))
    rows, plans = [], dict[tuple[Solver, tuple[Node, ...]], int | None]()
    for job in (bar := progress_bar(jobs, desc="benchmark", disable=not progress)):
        bar.set_postfix_str(f"{job.method}, NFE {job.nfe or 'adaptive'}")
        try:
            plan = _plan(denoiser, job)
            if (before := plans.setdefault((plan.solver, plan.nodes), job.nfe)) != job.nfe:
                raise InputError(f"the same steps as with nfe={before}")
            result = sample(denoiser, shape, seeds, plan=plan, dtype=dtype, on_failure="raise", **common)
        except InputError as reason:
            rows.append(replace(job.row(len(seeds)), skipped=str(reason)))
            continue
        x = rounding(result.x.cpu()) if rounding else result.x.cpu()
        scores = compare(x, reference, metrics, features)
        rows.append(_filled(job.row(len(seeds)), plan, result, keep, scores, truth))
    return rows


class _Job(NamedTuple):
    """A solver, its grid and its budget; None for an adaptive solver."""

    method: Solver
    rule: Grid
    nfe: int | None

    def row(self, count: int) -> Row:
        """The row for ``count`` samples, before they are drawn."""
        return Row(str(self.method), str(self.rule), self.nfe, None, None, self.method.stochastic, count)


def _plan(denoiser: ModelLike, job: _Job) -> Plan:
    """The plan of a row, without a warning of its width: a benchmark shows that as a distance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WrongWidth)
        plan = Plan.make(denoiser, PlanRequest(job.method, job.rule, nfe=job.nfe))
        plan.warn_of_width(as_model(denoiser, None).output)  # once for equal plans, so the solve does not warn
    return plan


def _jobs(specs: Sequence[str], grid: str | None, nfe: Sequence[int], space: str) -> list[_Job]:
    """Every solver with its grid at every budget, without repeats; a label may name a grid ("DPM++ 2M Karras")."""
    pairs: dict[tuple[Solver, Grid], None] = {}
    for spec in specs:
        label, named = resolve(spec, space)
        check_space(method := make(label), space)
        pairs[method, grids.make(grid or named or method.own_grid or grid_of(space))] = None
    budgets = list(dict.fromkeys(nfe))
    return [_Job(method, rule, n) for method, rule in pairs for n in ([None] if method.adaptive else budgets)]


def _filled(row: Row, plan: Plan, result: Sample, keep: int, scores: dict[str, Estimate], truth: Truth | None) -> Row:
    """The row completed with the cost, the scores and the error of its samples."""
    x = result.x.cpu()
    exact = None if truth is None or row.stochastic else _exact(truth, plan)
    return replace(
        row,
        grid=plan.grid,
        nfe=result.nfe,
        steps=plan.steps,
        seconds=result.seconds,
        seconds_per_sample=result.seconds / len(x),
        samples=x[:keep].clone(),
        metrics=scores,
        error=None if exact is None else _error(x, exact),
    )


def _check(
    reference: Tensor, solvers: Sequence[str], nfe: Sequence[int], seeds: Sequence[int], shape: tuple[int, ...]
) -> None:
    """Rejects inputs that a benchmark cannot use.

    Raises:
        InputError: see ``benchmark``.
    """
    if reference.shape[1:] != shape:
        raise InputError(f"the reference has samples of shape {tuple(reference.shape[1:])}, the model's are {shape}")
    if min(len(seeds), len(reference)) < 4:
        raise InputError(f"a benchmark needs at least four samples, got {len(seeds)} seeds and {len(reference)} real")
    if not solvers or not nfe:
        raise InputError("a benchmark needs at least one solver and one number of evaluations")
    for budget in nfe:
        positive_integer("nfe", budget)


def _check_truth(truth: Truth | None, count: int) -> None:
    """Rejects an exact solution from other starts.

    Raises:
        InputError: it has another number of samples.
    """
    if truth is not None and len(truth.x) != count:
        raise InputError(f"the exact solution has {len(truth.x)} samples for {count} seeds")


def _exact(truth: Truth, plan: Plan) -> Tensor | None:
    """The exact solution at the end of the plan; None if the plan and the solution cover different ranges."""
    start, end, sde = plan.nodes[0], plan.nodes[-1], plan.sde
    last = plan.nodes[-2] if end.sigma == 0 else end
    if start.t != sde.t_max or (last.t != sde.t_min and len(plan.nodes) > 2):
        return None
    return truth.x if end.sigma == 0 else truth.at_t_min


def _error(x: Tensor, exact: Tensor) -> Estimate:
    """Root-mean-square distance per dimension, with the 95 % percentile interval over resampled samples."""
    squares = (x.double() - exact.to(x.device).double()).flatten(1).square().mean(1)
    draws = torch.randint(len(squares), (_RESAMPLES, len(squares)), generator=generator(0, 2))
    low, high = squares[draws].mean(1).sqrt().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(squares.mean().sqrt()), low, high)


def record(row: Row) -> dict[str, Any]:
    """A row as flat columns of numbers, strings and None, without its samples."""
    columns: dict[str, Any] = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in _NESTED}
    for name, estimate in {**row.metrics, "error": row.error}.items():
        for part in ("value", "low", "high"):
            columns[_column(name, part)] = None if estimate is None else getattr(estimate, part)
    return columns


def _column(name: str, part: str) -> str:
    return name if part == "value" else f"{name}_{part}"


def write(rows: Sequence[Row], folder: str | Path, header: Mapping[str, Any]) -> None:
    """Writes ``results.json`` (the header and the rows) and ``results.csv`` (the rows).

    Args:
        folder: created if needed; files in it are replaced only when the new ones are complete.
        header: what a reader needs to run a row again: the command, the config, the seeds, the reference and its
            ``fingerprint``, ... Written as given, after ``environment()``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = [record(row) for row in rows]
    write_json(folder / "results.json", {"header": {**environment(), **header}, "rows": records})
    write_csv(folder / "results.csv", records)


def read(folder: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Reads the header and the rows that ``write`` wrote into a folder; the rows have no samples.

    Raises:
        InputError: ``results.json`` is missing, or ``write`` did not write it.
    """
    path = Path(folder) / "results.json"
    try:
        document = read_json(path, "benchmark's result file")
        return {**document["header"]}, [_row(columns) for columns in document["rows"]]
    except (KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(f"{str(path)!r} is not a benchmark's result file: {reason}") from None


def _typed(columns: dict[str, Any], name: str, hint: Any) -> Any:
    """A column's value.

    Raises:
        KeyError, TypeError: there is none, or it is not of the type ``hint``.
    """
    value, kinds = columns[name], get_args(hint) or (hint,)
    large = type(value) is int and abs(value) > 2**53
    if large or (type(value) not in kinds and not (float in kinds and type(value) is int)):
        raise TypeError(f"{name} is {shown(value)}")
    return float(value) if float in kinds and value is not None else value


def _row(columns: dict[str, Any]) -> Row:
    def estimate(name: str) -> Estimate | None:
        parts = [_typed(columns, _column(name, part), float | None) for part in ("value", "low", "high")]
        return None if None in parts else Estimate(*parts)

    hints = get_type_hints(Row)
    facts = {f.name: _typed(columns, f.name, hints[f.name]) for f in fields(Row) if f.name not in _NESTED}
    scores = {name: estimate(name) for name in METRICS if name in columns}
    return Row(**facts, metrics={k: v for k, v in scores.items() if v is not None}, error=estimate("error"))
