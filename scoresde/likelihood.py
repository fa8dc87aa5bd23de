"""Log-likelihood by the probability-flow ODE, with any deterministic solver.

log p(x) = log p_T(x_T) + int div, where x is carried from t_min to t_max. What is reported is the density, on the
data's own scale, of x0 + (sigma / alpha)(t_min) eps: x enters the path as alpha(t_min) x, and the change of scale is
the budget's ``truncation``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor
from tqdm.auto import tqdm

import solvers
from solvers import Grid, InputError, Node, Solver

from .data import spread
from .dequantisation import Dequantiser, dequantisers, uniforms
from .divergence import Divergence, Exact, divergences
from .problem import WithLogDensity
from .sample import Plan, batches_of, check_batch, check_finite
from .sde import Denoises


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods and what they are made of.

    Attributes:
        nats: (B,) float64, the sum of the budget.
        stderr: (B,) nats, the standard error of the trace estimate; 0 for the exact trace, NaN for a single probe.
        nfe: model evaluations per sample, the largest of the batch: forward passes.
        nfe_per_sample: (B,).
        products: vector-Jacobian products per sample, the largest of the batch; each costs about a backward pass.
        latent: the states (B, *) at t_max.
        budget: (B,) nats each: ``prior`` log p_T(x_T), ``divergence`` integral, ``truncation`` (the change of scale
            at t_min), ``dequantisation`` (minus the log-density of the noise in units of the bin: 0 for uniform
            noise), ``offset`` (the log of the bin's volume, where a bin width is known); of several draws the means,
            and ``importance``, what weighting them gained over their mean.
        bin_width: distance between neighbouring levels of the data, None for continuous data.
        kind: what the number is.
        probes: channels of the trace's estimate, whose spread is the standard error.
        solver_error: (B,) nats, twice the distance to the same solve with half the steps, or to one with tolerances 32
            times as tight: more than the error of the value as long as the method converges. None
            where it was not asked for.
        terms: of a chain's bound, (B, N + 1) nats, see ``bounds.chain_bound``; None otherwise.
    """

    nats: Tensor
    stderr: Tensor
    nfe: int
    latent: Tensor
    budget: Mapping[str, Tensor]
    solver: str
    grid: str
    divergence: str
    seconds: float
    bin_width: float | None = None
    kind: str = "exact ODE value"
    terms: Tensor | None = None
    nfe_per_sample: Tensor | None = None
    products: int = 0
    probes: int = 1
    solver_error: Tensor | None = None

    @property
    def dimensions(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.latent.shape[1:])

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 P(level) / d (B,), where P is the mass of a sample's bin.

        Raises:
            InputError: no bin width is known, so the data have no bits.
        """
        if self.bin_width is None:
            raise InputError("bits/dim need the bin width of discrete data; give log_prob(bin_width=...) or use .nats")
        return -self.nats / (self.dimensions * math.log(2))

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Bounds (B,) of the exact trace's nats: nats -+ q stderr, q of Student's law with as many degrees of freedom
        as there are probes, less one. What the solver errs is beside it.

        Raises:
            InputError: a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, got {level!r}")
        q = float(student.ppf(0.5 + level / 2, self.probes - 1)) if self.probes > 1 else math.nan
        half = 0 * self.nats if bool((self.stderr == 0).all()) else q * self.stderr
        return self.nats - half, self.nats + half

    def __str__(self) -> str:

        def mean(values: Tensor, digits: int) -> str:
            count = len(values)
            error = f" +- {float(values.std()) / math.sqrt(count):.{digits}f}" if count > 1 else ""
            return f"{float(values.mean()):.{digits}f}{error}"

        lines = [f"log p = {mean(self.nats, 3)} nats (mean of {len(self.nats)}), {self.kind}"]
        if self.bin_width is not None:
            lines.append(f"bits/dim = {mean(self.bits_per_dim, 4)}")
        lines += [f"  {name:15s} {float(part.mean()):12.3f} nats" for name, part in self.budget.items()]
        if self.divergence:
            lines.append(
                f"  trace estimate's standard error {float(self.stderr.mean()):.3g} nats a sample ({self.divergence})"
            )
        if self.solver_error is not None:
            worst, average = float(self.solver_error.max()), float(self.solver_error.mean())
            lines.append(f"  solver's error {average:.3g} nats a sample, {worst:.3g} at most")
        work = f"{self.nfe} NFE" + (f", {self.products} vector-Jacobian products" if self.products else "")
        lines.append(f"  {self.solver} on {self.grid}, {work}, {self.seconds:.1f} s")
        return "\n".join(lines)


def dequantise(x: Tensor, bin_width: float, seeds: Iterable[int]) -> Tensor:
    """x (B, *) spread uniformly over its bins: x + bin_width (u - 1/2), u from each sample's seed."""
    return spread(x, bin_width, uniforms(tuple(x.shape[1:]), list(seeds)).to(x))


def log_prob(
    denoiser: Denoises,
    x: Tensor,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
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
        solver, grid, steps, nfe: as for ``sample``; the solver must be deterministic, and the default grid of this
            function is ``logsnr``. By default ``heun``, and ``rk45`` for a tolerance. The state is float64, the
            network's input has the dtype of x.
        tolerance: instead of steps and nfe, the total error: in bits/dim where a bin width is known, else in nats.
            Steps and probes are chosen for it, see ``tolerance.meet``.
        divergence: ``exact``, ``hutchinson(probes=4)``, ``orthogonal(probes=4)`` or ``hutchpp(vectors=2)``.
        seeds: of the probes and of the dequantiser's draws, one per sample; 0, 1, ... by default.
        prior: log-density (B,) at t_max of states (B, *); by default the SDE's prior. A solve that ends before the
            SDE's t_max has no default.
        bin_width: of discrete data: nats are then of the level's probability, and ``bits_per_dim`` is defined. x are
            levels for a ``dequantiser``, and otherwise dequantised already, see ``dequantise``.
        dequantiser: ``uniform``, ``truncated_normal`` or a ``VariationalDequantiser``: x are levels, and it draws the
            noise.
        draws: of the dequantiser, importance-weighted: a solve each, for a tighter bound.
        error: solve once more with half the steps, or with tighter tolerances, for ``solver_error``; it counts.
        differentiable: keep the graph, so that ``nats`` can be differentiated by x, the parameters and the conditions.
        batch_size: how many samples to carry at once; it does not change the values.

    >>> import scoresde, torch
    >>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
    >>> result = log_prob(target.denoiser(scoresde.VP()), torch.zeros(1, 2), steps=20, divergence="exact")
    >>> ratio = scoresde.VP()(1e-3).ratio
    >>> abs(result.nats.item() + math.log(2 * math.pi * (1 + ratio**2))) < 1e-6  # N(0, 1 + ratio^2) at its mean
    True

    Raises:
        InputError: see ``Plan.make``; also a stochastic solver, data that are empty, not floats or not finite, a
            shortened range without a prior, a dequantiser without a bin width, a result that is not finite.
    """
    if tolerance is not None:
        if (steps, nfe, draws) != (None, None, 1):
            raise InputError("tolerance chooses the steps: leave out steps, nfe and draws")
        check_batch("x", x, condition)
        rows_seeds = list(range(len(x)) if seeds is None else seeds)

        def attempt(method: Solver, count: int | None, trace: Divergence, rows: slice) -> LogProb:
            part = {name: value[rows] for name, value in (condition or {}).items()}
            options: dict[str, Any] = {"prior": prior, "bin_width": bin_width, "dequantiser": dequantiser}
            options |= {"t_min": t_min, "t_max": t_max, "batch_size": batch_size, "progress": progress}
            given = grid if count is not None else None
            return log_prob(
                denoiser, x[rows], method, given, count, divergence=trace, seeds=rows_seeds[rows],
                condition=part, differentiable=differentiable, **options,
            )  # fmt: skip

        from . import tolerance as budget_of

        method, rule = budget_of.solver_of(solver or "rk45"), divergences.make(divergence)
        nats_of_it = budget_of.in_nats(tolerance, bin_width, x)
        return budget_of.meet(attempt, method, rule, nats_of_it, len(x), x[0].numel())
    solver = solver or "heun"
    plan = Plan.make(denoiser, solver, grid or "logsnr", steps, nfe, t_min, t_max, stop=True)
    rule = divergences.make(divergence)
    check_batch("x", x, condition)
    seeds = list(range(len(x)) if seeds is None else seeds)
    if len(seeds) != len(x):
        raise InputError(f"{len(x)} samples with {len(seeds)} seeds; give one seed for each sample")
    if plan.solver.stochastic:
        raise InputError(f"{plan.solver} draws noise; a likelihood needs a deterministic solver")
    if bin_width is not None and not bin_width > 0:
        raise InputError(f"bin_width must be positive, got {bin_width:g}")
    start, end = plan.nodes[-1], plan.nodes[0]
    if prior is None and not math.isclose(end.t, denoiser.sde.t_max, rel_tol=1e-9):
        raise InputError(f"the solve ends at t={end.t:g}, before t_max={denoiser.sde.t_max:g}: give the prior there")
    noise = None if dequantiser is None else dequantisers.make(dequantiser)
    if noise is not None and bin_width is None:
        raise InputError(f"the dequantiser {noise} needs the bin width of discrete data: give bin_width")
    if solvers.errors.positive_integer("draws", draws) > 1 and noise is None:
        raise InputError(f"draws={draws} are of a dequantiser: name one")
    began = time.perf_counter()
    work = _Work(denoiser, rule, seeds, dict(condition or {}), differentiable, batch_size, progress)
    shape, d = tuple(x.shape[1:]), x[0].numel()
    log_prior = prior or denoiser.sde.prior().log_prob

    def value(path: Plan, draw: int) -> tuple[dict[str, Tensor], _Integral]:
        y, law = x, None
        if noise is not None and bin_width is not None:
            u, law = noise.spread(x, uniforms(shape, seeds, draw), bin_width, start)
            y = x + u.to(x)
        found = work.integrate(y, path)
        ones = torch.ones(len(x), dtype=torch.float64, device=found.latent.device)
        volume = d * math.log(1.0 if bin_width is None else bin_width)
        parts = {
            "prior": log_prior(found.latent).double(),
            "divergence": found.integral.mean(1),
            "truncation": d * math.log(start.alpha) * ones,
            "dequantisation": 0 * ones if law is None else -law.to(ones) - volume,
            "offset": volume * ones,
        }
        return parts, found

    with torch.set_grad_enabled(differentiable):
        made = [value(plan, draw) for draw in range(draws)]
        totals = torch.stack([torch.stack(list(parts.values())).sum(0) for parts, _ in made])
        budget = {name: torch.stack([parts[name] for parts, _ in made]).mean(0) for name in made[0][0]}
        nats = totals[0]
        if draws > 1:
            nats = torch.logsumexp(totals, 0) - math.log(draws)
            budget["importance"] = nats - totals.mean(0)
        # the draws share their probes: of each probe the weighted mean, and then the spread over the probes
        shares = torch.softmax(totals, 0).unsqueeze(2)
        stderr = rule.stderr((shares * torch.stack([found.integral for _, found in made])).sum(0), d)
        counts, gap = [found.nfe for _, found in made], None
        if error:
            other, factor = _compared(denoiser, plan, grid or "logsnr", t_min, t_max)
            parts, found = value(other, 0)
            gap = factor * (torch.stack(list(parts.values())).sum(0) - totals[0]).abs().detach()
            counts.append(found.nfe)
    spent = torch.stack(counts).sum(0)
    return LogProb(
        nats=nats,
        stderr=stderr,
        nfe=int(spent.max()),
        nfe_per_sample=spent,
        products=int(spent.max()) * rule.products(d),
        probes=rule.channels(d),
        solver_error=gap,
        latent=made[0][1].latent,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        bin_width=bin_width,
        kind=("" if noise is None else "lower bound of the levels, by the ")
        + ("exact ODE value" if isinstance(rule, Exact) else "estimate of the ODE value"),
    )


class _Integral(NamedTuple):
    """The states (B, *) at the far end, the integrals of the divergence (B, m) in nats, and the evaluations (B,)."""

    latent: Tensor
    integral: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class _Work:
    """What every solve of a likelihood shares."""

    denoiser: Denoises
    rule: Divergence
    seeds: list[int]
    conditions: Mapping[str, Tensor]
    differentiable: bool
    batch_size: int | None
    progress: bool

    def integrate(self, x: Tensor, plan: Plan) -> _Integral:
        """Carries x (B, *) to the first node of a plan.

        Raises:
            InputError: the outcome is not finite.
        """
        start, end, d = plan.nodes[-1], plan.nodes[0], x[0].numel()
        batches = batches_of(len(x), self.batch_size)
        parts = []
        total = (len(plan.nodes) - 1) * len(batches)
        bar = tqdm(total=total, desc="log p", disable=not self.progress, leave=False)

        def advance(state: Tensor, node: Node) -> None:
            bar.update()

        with bar:
            for rows in batches:
                problem = WithLogDensity(
                    self.denoiser,
                    tuple(x.shape[1:]),
                    {name: value[rows] for name, value in self.conditions.items()},
                    self.rule,
                    self.rule.draw(self.seeds[rows], d),
                    self.differentiable,
                    x.dtype,
                    x.device,
                )
                state = problem.start(x[rows], start)
                solution = solvers.solve(plan.solver, problem, state, plan.nodes[::-1], hooks=[advance])
                latent, channels = problem.split(solution.x)
                # l is the log-density of x / alpha: back to that of x at both ends
                change = problem.log_density_change(channels, start, end) - d * math.log(end.alpha / start.alpha)
                parts.append(_Integral(latent, -change, solution.nfe))
        found = _Integral(*(torch.cat(values) for values in zip(*parts, strict=True)))
        check_finite(torch.cat([found.latent.flatten(1), found.integral], 1), plan)
        return found


def _compared(
    denoiser: Denoises, plan: Plan, grid: str | Grid, t_min: float | None, t_max: float | None
) -> tuple[Plan, float]:
    """The plan that a value is compared with, and the factor on the distance: half the steps, whose own error is the
    greater; or tolerances a 32nd as large. (Looser ones may agree with the value, and both be wrong.)

    Raises:
        InputError: the plan has one step.
    """
    if plan.solver.adaptive:
        solver: Any = plan.solver
        return replace(plan, solver=replace(solver, rtol=solver.rtol / 32, atol=solver.atol / 32)), 2.0
    count = len(plan.nodes) - 1
    if count < 2:
        raise InputError("error=True halves the steps of a grid: it takes at least two")
    if solvers.grids.make(grid).fixed:
        return replace(plan, nodes=(*plan.nodes[:-1][::2], plan.nodes[-1])), 2.0
    return Plan.make(denoiser, plan.solver, grid, count // 2, None, t_min, t_max, stop=True), 2.0
