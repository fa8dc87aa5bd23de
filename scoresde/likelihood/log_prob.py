"""Log-likelihood by the probability-flow ODE, with any deterministic solver.

log p(x) = log p_T(x_T) + int div, where the ODE moves x from t_min to t_max. The result is the density of
x0 + (sigma / alpha)(t_min) eps, on the scale of the data: x enters the path as alpha(t_min) x, and the term
``truncation`` of the budget is the change of scale. If the training data are x = a y + b of original numbers y, then
log p(y) = log p(x) + d log |a|, or plus the sum of the log scales where each dimension has its own. ``log_prob`` warns
of x that do not have the scale of the training data, as far as the model knows it.

A likelihood takes three stages: make a ``LikelihoodPlan``, which contains everything but the model and the samples;
evaluate the ODE for every draw of every plan; assemble a ``LogProb``. The default solver is ``adams_adaptive`` with
tolerances of 4e-5, or ``heun`` if steps or nfe are given; the default grid is ``logsnr``. The state is float64; the
denoiser receives x in its dtype, in at least float32, and runs in evaluation mode and under the caller's autocast.

>>> import scoresde, torch
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
>>> result = log_prob(target.denoiser(scoresde.VP()), torch.zeros(1, 2), steps=20, divergence="exact")
>>> ratio = scoresde.VP()(1e-3).ratio
>>> abs(result.nats.item() + math.log(2 * math.pi * (1 + ratio**2))) < 1e-6  # N(0, 1 + ratio^2) at its mean
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Solver

from ..data.dataset import spread
from ..io.inputs import Array, Seeds
from ..models.counting import counted
from ..models.evaluation import evaluation, gradients, recordable
from ..models.faults import checked_model, density_faults, report_faults
from ..models.model import Model, as_model
from ..paths.base import ModelLike
from ..sampling.batches import Batching, batch_of
from ..sampling.failures import Failure, check_how, report
from ..sampling.plan import Plan, PlanRequest, choose_plan
from . import solver_error
from .density_ode import DensitySolution, DensitySolve
from .dequantisation import Dequantiser, dequantisers, uniforms
from .divergence import Divergence, rule_of
from .inputs import check_end, deterministic, on_lattice, positive, prior_at, seeds_of
from .result import LogProb, degrees, with_counts
from .tolerance import Settings, in_nats, meet, other_seeds, solver_of, solver_setting

ADAPTIVE = "adams_adaptive(rtol=4e-05, atol=4e-05)"
GRID = "logsnr"
BOUND_OF_LEVELS = "lower bound on the log-probability of the levels"


def dequantise(x: Array, bin_width: float, seeds: Seeds) -> Tensor:
    """Spreads levels x (B, *) uniformly over their bins: x + bin_width (u - 1/2), with u from each sample's seed.

    Raises:
        InputError: x is not a batch of finite floats, there is not one seed per sample, or the width is not positive.
    """
    x, _ = batch_of("x", x)
    noise = uniforms(tuple(x.shape[1:]), seeds_of(seeds, len(x)))
    return spread(x, bin_width, noise.to(x.device, torch.promote_types(x.dtype, torch.float32)))


def default_solver(steps: int | None, nfe: int | None) -> str:
    """The default solver of a likelihood: an adaptive one, or ``heun`` if steps or nfe are given."""
    return ADAPTIVE if steps is None and nfe is None else "heun"


def choose_plan_to_t_min(given: Plan | None, denoiser: ModelLike, request: PlanRequest) -> Plan:
    """The plan of a likelihood: the given one, or one made as requested; it ends at t_min.

    Raises:
        InputError: the solver is stochastic; see ``choose_plan``.
    """
    default = default_solver(request.steps, request.nfe)
    if given is None:
        deterministic(request.solver or default)  # report this error before a missing number of steps
    made = choose_plan(given, denoiser, request, default=(default, GRID), end_at_t_min=True)
    deterministic(made.solver)
    return made


@dataclass(frozen=True)
class Samples:
    """The samples of a likelihood: x (B, *), one seed per sample, and conditions (B, *)."""

    x: Tensor
    seeds: list[int]
    conditions: Mapping[str, Tensor]

    def select(self, rows: slice) -> Samples:
        """The samples in ``rows``."""
        conditions = {name: value[rows] for name, value in self.conditions.items()}
        return Samples(self.x[rows], self.seeds[rows], conditions)

    def recordable(self) -> Samples:
        """The samples as tensors that autograd can record, outside of torch.inference_mode."""
        conditions = {name: recordable(value) for name, value in self.conditions.items()}
        return Samples(recordable(self.x), self.seeds, conditions)

    @property
    def dimensions(self) -> int:
        """The number of dimensions d of one sample."""
        return self.x[0].numel()


@dataclass(frozen=True)
class LikelihoodPlan:
    """The plan of a likelihood: everything but the model and the samples.

    Attributes:
        plan: a plan with a deterministic solver that ends at t_min.
        divergence: the estimator of the trace: ``exact``, ``hutchinson(probes=4)``, ``orthogonal(probes=4)`` or
            ``hutchpp(vectors=2)``. ``log_prob`` chooses ``hutchinson`` by default, or ``exact`` in at most 4
            dimensions, where it takes no more products.
        batching: the batch size, device and dtype.
        prior: the log-density (B,) at t_max of states (B, *), which are float64; by default the SDE's prior. If the
            solve ends before the SDE's t_max, there is no default.
        bin_width: the bin width of discrete data. ``nats`` then refer to the probability of the level, and
            ``bits_per_dim`` is defined. x must be levels if a ``dequantiser`` is given; otherwise x must already be
            dequantised, see ``dequantise``.
        dequantiser: ``uniform``, ``truncated_normal`` or a ``VariationalDequantiser``, which adds noise to the levels.
        draws: the number of draws of the dequantiser, each with its own solve. They are importance-weighted, for a
            tighter bound.
        error: estimate ``solver_error`` by two more solves: with a half and a quarter of the steps, or with tolerances
            4 and 16 times as large. ``nfe`` includes them.
        differentiable: keep the graph, so that ``nats`` can be differentiated by x, the parameters and the conditions;
            in every mode of the caller, ``no_grad`` and ``inference_mode`` included. Otherwise there is no graph.

    Raises:
        InputError: the range is shortened without a prior; there is a dequantiser without a bin width; ``draws`` is not
            a positive integer, or exceeds 1 without a dequantiser; ``error`` is set with fewer than four steps.
    """

    plan: Plan
    divergence: Divergence
    batching: Batching
    prior: Callable[[Tensor], Tensor] | None = None
    bin_width: float | None = None
    dequantiser: Dequantiser | None = None
    draws: int = 1
    error: bool = False
    differentiable: bool = False

    def __post_init__(self) -> None:
        check_end("the solve ends", self.prior, self.plan.sde, self.plan.nodes[0].t)
        if self.dequantiser is not None and self.bin_width is None:
            raise InputError(f"the dequantiser {self.dequantiser} needs the bin width of discrete data: pass bin_width")
        if solvers.errors.positive_integer("draws", self.draws) > 1 and self.dequantiser is None:
            raise InputError(f"draws={self.draws} needs a dequantiser: pass dequantiser")
        _ = self.coarser

    @property
    def coarser(self) -> tuple[Plan, ...]:
        """The two coarser plans for the estimate of the solver error; empty unless ``error`` is set."""
        return solver_error.coarser(self.plan) if self.error else ()


class Integrals(NamedTuple):
    """The results of the ODE along one plan, one for each draw of the dequantiser, and their combination."""

    budgets: list[dict[str, Tensor]]
    solutions: list[DensitySolution]

    @property
    def totals(self) -> Tensor:
        """The log-density (draws, B) of each draw, in nats."""
        return torch.stack([torch.stack(list(parts.values())).sum(0) for parts in self.budgets])

    @property
    def nats(self) -> Tensor:
        """The log-density (B,) in nats, from all draws by importance weights."""
        totals = self.totals
        return totals[0] if len(totals) == 1 else torch.logsumexp(totals, 0) - math.log(len(totals))

    @property
    def budget(self) -> dict[str, Tensor]:
        """The terms of ``nats`` (B,): means over the draws, and the gain from the importance weights."""
        parts = {name: torch.stack([each[name] for each in self.budgets]).mean(0) for name in self.budgets[0]}
        return parts if len(self.budgets) == 1 else {**parts, "importance": self.nats - self.totals.mean(0)}

    @property
    def changes(self) -> Tensor:
        """The integral of the divergence by channels (B, m), as a weighted mean over the draws.

        All draws share their probes, so the channels remain those of the single probes.
        """
        shares = torch.softmax(self.totals, 0).unsqueeze(2)
        return -(shares * torch.stack([solution.change for solution in self.solutions])).sum(0)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The samples that failed in some draw, each with its first reason."""
        return tuple({f.sample: f for solution in self.solutions[::-1] for f in solution.failures}.values())

    @property
    def nfe(self) -> Tensor:
        """The NFE (B,), summed over the draws."""
        return torch.stack([solution.nfe for solution in self.solutions]).sum(0)


def log_prob(
    denoiser: ModelLike,
    x: Array,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    tolerance: float | None = None,
    divergence: str | Divergence | None = None,
    seeds: Seeds | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    bin_width: float | None = None,
    dequantiser: str | Dequantiser | None = None,
    draws: int = 1,
    error: bool = False,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Array] | None = None,
    differentiable: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> LogProb:
    """Log-likelihood of samples x (B, *) under the model's probability-flow ODE.

    Args:
        solver, grid, steps, nfe, t_min, t_max, plan: as in ``sample``. The default solver is ``adams_adaptive`` with
            tolerances of 4e-5, or ``heun`` if steps or nfe are given; the default grid is ``logsnr``.
        tolerance: instead of steps and nfe, the total error: in bits/dim if a bin width is known, else in nats. Steps
            and probes are chosen to meet it, see ``tolerance.meet``, and ``solver_error`` is estimated.
        seeds: the seeds of the probes and of the dequantiser's draws, one integer per sample; by default 0, 1, ...
        divergence, prior, bin_width, dequantiser, draws, error, differentiable: see ``LikelihoodPlan``.
        batch_size, progress, on_failure: as in ``sample``. The nats of samples that fail are NaN.

    Raises:
        InputError: see ``scoresde.plan`` and ``LikelihoodPlan``; also if the solver draws noise, or leaves torch but
            gradients are requested; x is empty, not floats, not finite or, with a dequantiser, not levels; the seeds
            are not one per sample; the prior does not return (B,); the tolerance is not positive; all samples fail.
    """
    check_how(on_failure)
    x, conditions = batch_of("x", x, condition, denoiser := checked_model(denoiser, prior is None))
    samples = Samples(x, seeds_of(seeds, len(x)), conditions)
    width = None if bin_width is None else positive("bin_width", bin_width)
    report_faults(density_faults(denoiser, x, width))
    batching = Batching(batch_size, x.device, torch.promote_types(x.dtype, torch.float32), progress)

    def likelihood_plan(of: Plan) -> LikelihoodPlan:
        noise = None if dequantiser is None else dequantisers.make(dequantiser)
        rule = rule_of(divergence, samples.dimensions)
        return LikelihoodPlan(of, rule, batching, prior, width, noise, draws, error, differentiable)

    request = PlanRequest(solver, grid, steps, nfe, t_min, t_max)
    if tolerance is None:
        how = likelihood_plan(choose_plan_to_t_min(plan, denoiser, request))
        return _told(_evaluated(denoiser, how, samples), on_failure)
    if (plan, steps, nfe, draws) != (None, None, None, 1):
        raise InputError("tolerance chooses the steps: leave out plan, steps, nfe and draws; pass solver and grid")
    return _told(_within(denoiser, samples, positive("tolerance", tolerance), request, likelihood_plan), on_failure)


def _evaluated(denoiser: Model, how: LikelihoodPlan, samples: Samples) -> LogProb:
    """``evaluate``, after a warning if the noise that the samples are encoded to is far too wide or narrow."""
    how.plan.reversed().warn_of_width(denoiser.output)
    return evaluate(denoiser, how, samples)


def _told(found: LogProb, on_failure: str) -> LogProb:
    """The result, after its failures were reported."""
    report(found.failures, len(found.nats), on_failure, f"{found.solver} on {found.grid}")
    return found


def _within(
    denoiser: ModelLike,
    samples: Samples,
    tolerance: float,
    request: PlanRequest,
    likelihood_plan: Callable[[Plan], LikelihoodPlan],
) -> LogProb:
    """The likelihood within a tolerance: ``tolerance.meet`` calls ``evaluate`` with increasing steps and probes."""
    grid = request.grid or GRID
    solvers.grids.make(grid)  # check the grid even though adaptive solvers do not use it
    method = solver_of(request.solver or ADAPTIVE)

    def plan_in(method: Solver, steps: int | None) -> Plan:
        placed = GRID if steps is None else grid
        return choose_plan_to_t_min(None, denoiser, request._replace(solver=method, grid=placed, steps=steps))

    first = replace(likelihood_plan(plan_in(*solver_setting(method, 0))), error=False)
    trials = replace(samples, seeds=other_seeds(samples.seeds))

    def likelihood_with(use: Settings) -> LogProb:
        plan = plan_in(use.solver, use.steps)
        how = replace(first, plan=plan, divergence=use.divergence, differentiable=use.graph)
        return evaluate(denoiser, how, (trials if use.trial else samples).select(use.rows))

    total = in_nats(tolerance, first.bin_width, samples.x)
    count, d = len(samples.x), samples.dimensions
    return meet(likelihood_with, method, first.divergence, total, count, d, first.differentiable)


def evaluate(denoiser: ModelLike, how: LikelihoodPlan, samples: Samples) -> LogProb:
    """Computes the likelihood of samples as planned.

    Raises:
        InputError: see ``log_prob``.
    """
    if how.dequantiser is not None and how.bin_width is not None:
        on_lattice(samples.x, how.bin_width)
    began, model = time.perf_counter(), as_model(denoiser)
    with counted() as count:
        with evaluation(model), gradients(how.differentiable):
            samples = samples.recordable()
            found = _integrals(model, how, samples)
            result = replace(assemble(how, found, samples.dimensions), density=model.density)
        if how.error:
            frozen = replace(how, error=False, differentiable=False)
            with evaluation(model), gradients(False):
                others = [_integrals(model, replace(frozen, plan=plan), samples) for plan in how.coarser]
                gap = solver_error.bound(result.nats.detach(), *(other.nats for other in others))
            result = _with_nfe(replace(result, solver_error=gap), [found, *others])
    return replace(with_counts(result, count), seconds=time.perf_counter() - began)


def assemble(how: LikelihoodPlan, found: Integrals, d: int) -> LogProb:
    """The result of the integrals along one plan, for samples of d dimensions."""
    rule, nats = how.divergence, found.nats
    result = LogProb(
        nats=nats,
        stderr=rule.stderr(found.changes, d),
        freedom=degrees(rule.channels(d), nats),
        stderr_of="" if rule.exact(d) else "the trace's probes",
        nfe=0,
        latent=found.solutions[0].end,
        budget=found.budget,
        solver=str(how.plan.solver),
        grid=how.plan.grid,
        divergence=str(rule),
        seconds=0.0,
        bin_width=how.bin_width,
        failures=found.failures,
        kind=kind_of(rule, d) if how.dequantiser is None else f"{BOUND_OF_LEVELS} ({kind_of(rule, d)})",
    )
    return _with_nfe(result, [found])


def _with_nfe(result: LogProb, solves: Sequence[Integrals]) -> LogProb:
    """The result with the evaluations of all its solves."""
    nfe = torch.stack([found.nfe for found in solves]).sum(0)
    return replace(result, nfe=int(nfe.max()), nfe_per_sample=nfe)


def _integrals(denoiser: ModelLike, how: LikelihoodPlan, samples: Samples) -> Integrals:
    """Solves for every draw of the samples from t_min to t_max, and computes the budget (B,) of each draw."""
    x, d, plan, width = samples.x, samples.dimensions, how.plan, how.bin_width
    host = "cpu" if x.device.type == "mps" else x.device  # MPS has no float64
    shape, start = tuple(x.shape[1:]), plan.nodes[-1]
    solve = DensitySolve(
        denoiser, how.divergence, samples.seeds, shape, samples.conditions, how.batching, how.differentiable
    )
    found = Integrals([], [])
    for draw in range(how.draws):
        y, law = x.to(host).double(), None
        if how.dequantiser is not None and width is not None:
            u, law = how.dequantiser.spread(x, uniforms(shape, samples.seeds, draw), width, start)
            y = y + u.to(host)
        solution = solve.run(plan.reversed(), lambda rows, y=y: y[rows])  # type: ignore[misc]
        ones = torch.ones(len(x), dtype=torch.float64, device=solution.end.device)
        volume = d * math.log(width or 1.0)
        found.solutions.append(solution)
        found.budgets.append({
            "prior": prior_at(how.prior, denoiser.sde, solution.end),
            "divergence": -solution.change.mean(1),
            "truncation": d * math.log(start.alpha) * ones,
            "dequantisation": 0 * ones if law is None else -law.to(ones) - volume,
            "offset": volume * ones,
        })  # fmt: skip
    return found


def kind_of(rule: Divergence, d: int) -> str:
    """The description of an ODE's value with this trace in d dimensions: exact, or an estimate."""
    return "exact ODE value" if rule.exact(d) else "estimate of the ODE value"
