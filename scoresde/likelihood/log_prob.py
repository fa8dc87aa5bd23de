"""Log-likelihood by the probability-flow ODE, with any deterministic solver.

log p(x) = log p_T(x_T) + int div, where x is carried from t_min to t_max. What is reported is the density, on the
data's own scale, of x0 + (sigma / alpha)(t_min) eps: x enters the path as alpha(t_min) x, and the change of scale is
the budget's ``truncation``.

A likelihood is planned (``LikelihoodPlan``: everything but the samples), evaluated (every draw of every plan carried
along the ODE) and assembled into a ``LogProb``. By default the solver is ``adams_adaptive`` with tolerances of 1e-4,
or ``heun`` for steps or nfe, and the grid ``logsnr``. The state is float64; the network's input has the dtype of x, or
its own.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Solver

from ..data import spread
from ..paths.base import Denoises
from ..sampling.batches import Batching, check_batch
from ..sampling.plan import Plan, planned
from . import solver_error
from .density_ode import Carried, Carrier
from .dequantisation import Dequantiser, dequantisers, uniforms
from .divergence import Divergence, divergences
from .inputs import check_end, deterministic, on_lattice, positive, prior_at, seeds_of
from .result import LogProb, degrees
from .tolerance import in_nats, meet, other_seeds, setting, solver_of

ADAPTIVE = "adams_adaptive(rtol=0.0001, atol=0.0001)"
GRID = "logsnr"


def dequantise(x: Tensor, bin_width: float, seeds: Iterable[int]) -> Tensor:
    """x (B, *) spread uniformly over its bins: x + bin_width (u - 1/2), u from each sample's seed."""
    noise = uniforms(tuple(x.shape[1:]), list(seeds))
    return spread(x, bin_width, noise.to(x.device, torch.promote_types(x.dtype, torch.float32)))


def default_solver(steps: int | None, nfe: int | None) -> str:
    """The solver of a likelihood where none is named: one that chooses its steps, or ``heun`` for as many as asked."""
    return ADAPTIVE if steps is None and nfe is None else "heun"


def planned_up(
    given: Plan | None,
    denoiser: Denoises,
    solver: str | Solver | None,
    grid: str | Grid | None,
    steps: int | None,
    nfe: int | None,
    t_min: float | None,
    t_max: float | None,
) -> Plan:
    """The plan of a likelihood's call that takes one or its parts: it stops at t_min.

    Raises:
        InputError: a stochastic solver; see ``plan.planned``.
    """
    default = default_solver(steps, nfe)
    if given is None:
        deterministic(solver or default)  # before its steps are asked for
    made = planned(given, denoiser, solver, grid, steps, nfe, t_min, t_max, default=(default, GRID), stop=True)
    deterministic(made.solver)
    return made


@dataclass(frozen=True)
class Samples:
    """What a likelihood is of: x (B, *), a seed for each, and conditions (B, *)."""

    x: Tensor
    seeds: list[int]
    conditions: Mapping[str, Tensor]

    def select(self, rows: slice) -> Samples:
        """Some of the samples."""
        conditions = {name: value[rows] for name, value in self.conditions.items()}
        return Samples(self.x[rows], self.seeds[rows], conditions)

    @property
    def dimensions(self) -> int:
        """Numbers in one sample."""
        return self.x[0].numel()


@dataclass(frozen=True)
class LikelihoodPlan:
    """How a likelihood is found: everything but the model and the samples.

    Attributes:
        plan: of a deterministic solver, ending at t_min.
        divergence: ``exact``, ``hutchinson(probes=4)``, ``orthogonal(probes=4)`` or ``hutchpp(vectors=2)``.
        batching: how samples are carried.
        prior: log-density (B,) at t_max of states (B, *), which are float64; by default the SDE's prior. A solve that
            ends before the SDE's t_max has no default.
        bin_width: of discrete data: nats are then of the level's probability, and ``bits_per_dim`` is defined. x are
            levels for a ``dequantiser``, and otherwise dequantised already, see ``dequantise``.
        dequantiser: ``uniform``, ``truncated_normal`` or a ``VariationalDequantiser``: x are levels, and it draws the
            noise.
        draws: of the dequantiser, importance-weighted: a solve each, for a tighter bound.
        error: solve twice more, with half the steps and a quarter, or with tolerances 4 and 16 times as loose, for
            ``solver_error``; it counts.
        differentiable: keep the graph, so that ``nats`` can be differentiated by x, the parameters and the conditions.

    Raises:
        InputError: a shortened range without a prior, a dequantiser without a bin width, draws that are no positive
            integer or without a dequantiser, an error of fewer than four steps.
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
            raise InputError(f"the dequantiser {self.dequantiser} needs the bin width of discrete data: give bin_width")
        if solvers.errors.positive_integer("draws", self.draws) > 1 and self.dequantiser is None:
            raise InputError(f"draws={self.draws} are of a dequantiser: name one")
        _ = self.coarser

    @property
    def coarser(self) -> tuple[Plan, ...]:
        """The plans that the solver's error is estimated from, if it is."""
        return solver_error.coarser(self.plan) if self.error else ()


class Integrals(NamedTuple):
    """What the ODE along one plan gives for every draw of the dequantiser, and, of all draws, log p (B,) in nats."""

    budgets: list[dict[str, Tensor]]
    carried: list[Carried]

    @property
    def totals(self) -> Tensor:
        """The log-density of each draw (draws, B)."""
        return torch.stack([torch.stack(list(parts.values())).sum(0) for parts in self.budgets])

    @property
    def nats(self) -> Tensor:
        """The log-density (B,), the draws importance-weighted."""
        totals = self.totals
        return totals[0] if len(totals) == 1 else torch.logsumexp(totals, 0) - math.log(len(totals))

    @property
    def budget(self) -> dict[str, Tensor]:
        """The parts of ``nats`` (B,): means over the draws, and what weighting them gained."""
        parts = {name: torch.stack([each[name] for each in self.budgets]).mean(0) for name in self.budgets[0]}
        return parts if len(self.budgets) == 1 else {**parts, "importance": self.nats - self.totals.mean(0)}

    @property
    def changes(self) -> Tensor:
        """int div by channels (B, m): the draws share their probes, so of each probe the weighted mean."""
        shares = torch.softmax(self.totals, 0).unsqueeze(2)
        return -(shares * torch.stack([found.change for found in self.carried])).sum(0)

    @property
    def nfe(self) -> Tensor:
        """Model evaluations (B,)."""
        return torch.stack([found.nfe for found in self.carried]).sum(0)


def log_prob(
    denoiser: Denoises,
    x: Tensor,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    tolerance: float | None = None,
    divergence: str | Divergence = "hutchinson",
    seeds: Iterable[int] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    bin_width: float | None = None,
    dequantiser: str | Dequantiser | None = None,
    draws: int = 1,
    error: bool = False,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    differentiable: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogProb:
    """Log-likelihood of samples x (B, *) under the model's probability-flow ODE.

    Args:
        solver, grid, steps, nfe, t_min, t_max, plan: as for ``sample``; the defaults stand at the top of this module.
        tolerance: instead of steps and nfe, the total error: in bits/dim where a bin width is known, else in nats.
            Steps and probes are chosen for it, see ``tolerance.meet``; ``solver_error`` comes with it.
        seeds: of the probes and of the dequantiser's draws, one per sample, integers; by default 0, 1, ...
        divergence, prior, bin_width, dequantiser, draws, error, differentiable: see ``LikelihoodPlan``.
        batch_size: how many samples to carry at once; it does not change the values.

    Raises:
        InputError: see ``scoresde.plan`` and ``LikelihoodPlan``; also a solver that draws noise, or that leaves torch
            where gradients are asked for; data that are empty, not floats, not finite or, for a dequantiser, no levels;
            seeds that are not one integer a sample; a prior of another shape than (B,); a bin width or a tolerance that
            is no positive number; a result that is not finite.
    """
    check_batch("x", x, condition)
    samples = Samples(x, seeds_of(seeds, len(x)), condition or {})
    width = None if bin_width is None else positive("bin_width", bin_width)
    batching = Batching(batch_size, x.device, torch.promote_types(x.dtype, torch.float32), progress)

    def how(path: Plan) -> LikelihoodPlan:
        noise = None if dequantiser is None else dequantisers.make(dequantiser)
        return LikelihoodPlan(
            path, divergences.make(divergence), batching, prior, width, noise, draws, error, differentiable
        )

    if tolerance is None:
        return evaluate(denoiser, how(planned_up(plan, denoiser, solver, grid, steps, nfe, t_min, t_max)), samples)
    if plan is not None:
        raise InputError("tolerance chooses the steps: leave out the plan, and give solver and grid")
    if (steps, nfe, draws) != (None, None, 1):
        raise InputError("tolerance chooses the steps: leave out steps, nfe and draws")
    return _within(denoiser, samples, positive("tolerance", tolerance), solver or ADAPTIVE, grid, t_min, t_max, how)


def _within(
    denoiser: Denoises,
    samples: Samples,
    tolerance: float,
    solver: str | Solver,
    grid: str | Grid | None,
    t_min: float | None,
    t_max: float | None,
    how: Callable[[Plan], LikelihoodPlan],
) -> LogProb:
    """The likelihood within a tolerance: as many evaluations, with other steps and probes, as ``tolerance.meet`` asks
    for."""
    solvers.grids.make(grid or GRID)  # which adaptive solvers do not use
    method = solver_of(solver)

    def path(method: Solver, steps: int | None) -> Plan:
        placed = GRID if steps is None else grid or GRID
        return planned_up(None, denoiser, method, placed, steps, None, t_min, t_max)

    first = replace(how(path(*setting(method, 0))), error=False)
    trials = replace(samples, seeds=other_seeds(samples.seeds))

    def attempt(method: Solver, steps: int | None, rule: Divergence, rows: slice, trial: bool, graph: bool) -> LogProb:
        plan = replace(first, plan=path(method, steps), divergence=rule, differentiable=graph)
        return evaluate(denoiser, plan, (trials if trial else samples).select(rows))

    total = in_nats(tolerance, first.bin_width, samples.x)
    count, d = len(samples.x), samples.dimensions
    return meet(attempt, method, first.divergence, total, count, d, first.differentiable)


def evaluate(denoiser: Denoises, how: LikelihoodPlan, samples: Samples) -> LogProb:
    """The likelihood of samples, as planned.

    Raises:
        InputError: see ``log_prob``.
    """
    if how.dequantiser is not None and how.bin_width is not None:
        on_lattice(samples.x, how.bin_width)
    began, d, rule = time.perf_counter(), samples.dimensions, how.divergence
    with torch.set_grad_enabled(how.differentiable):
        found = _integrals(denoiser, how, samples)
        nats = found.nats
        budget, stderr = found.budget, rule.stderr(found.changes, d)
    gap, nfe = None, found.nfe
    if how.error:
        with torch.no_grad():
            frozen = replace(how, error=False, differentiable=False)
            others = [_integrals(denoiser, replace(frozen, plan=plan), samples) for plan in how.coarser]
            gap = solver_error.bound(nats.detach(), *(other.nats for other in others))
        nfe = torch.stack([nfe, *(other.nfe for other in others)]).sum(0)
    return LogProb(
        nats=nats,
        stderr=stderr,
        freedom=degrees(rule.channels(d), nats),
        stderr_of="" if rule.exact(d) else "the trace's probes",
        nfe=int(nfe.max()),
        nfe_per_sample=nfe,
        products=int(nfe.max()) * rule.products(d),
        solver_error=gap,
        latent=found.carried[0].end,
        budget=budget,
        solver=str(how.plan.solver),
        grid=how.plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        bin_width=how.bin_width,
        kind=("" if how.dequantiser is None else "lower bound of the levels, by the ") + kind_of(rule, d),
    )


def _integrals(denoiser: Denoises, how: LikelihoodPlan, samples: Samples) -> Integrals:
    """Every draw of the samples carried from t_min to t_max, and the budget (B,) of each."""
    x, d, plan, width = samples.x, samples.dimensions, how.plan, how.bin_width
    host = "cpu" if x.device.type == "mps" else x.device  # MPS has no float64
    shape, start = tuple(x.shape[1:]), plan.nodes[-1]
    carrier = Carrier(
        denoiser, how.divergence, samples.seeds, shape, samples.conditions, how.batching, how.differentiable
    )
    found = Integrals([], [])
    for draw in range(how.draws):
        y, law = x.to(host).double(), None
        if how.dequantiser is not None and width is not None:
            u, law = how.dequantiser.spread(x, uniforms(shape, samples.seeds, draw), width, start)
            y = y + u.to(host)
        carried = carrier.along(plan.reversed(), lambda rows, y=y: y[rows])  # type: ignore[misc]
        ones = torch.ones(len(x), dtype=torch.float64, device=carried.end.device)
        volume = d * math.log(width or 1.0)
        found.carried.append(carried)
        found.budgets.append({
            "prior": prior_at(how.prior, denoiser.sde, carried.end),
            "divergence": -carried.change.mean(1),
            "truncation": d * math.log(start.alpha) * ones,
            "dequantisation": 0 * ones if law is None else -law.to(ones) - volume,
            "offset": volume * ones,
        })  # fmt: skip
    return found


def kind_of(rule: Divergence, d: int) -> str:
    """What the ODE's value is with this trace of d dimensions."""
    return "exact ODE value" if rule.exact(d) else "estimate of the ODE value"
