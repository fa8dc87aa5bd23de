"""Log-likelihood by the probability-flow ODE, with any deterministic solver.

log p(x) = log p_T(x_T) + int div, where x is carried from t_min to t_max. What is reported is the density, on the
data's own scale, of x0 + (sigma / alpha)(t_min) eps: x enters the path as alpha(t_min) x, and the change of scale is
the budget's ``truncation``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Solver

from . import solver_error
from .batches import check_batch
from .checks import check_end, deterministic, on_lattice, positive, prior_at, seeds_of
from .data import spread
from .density_ode import Carried, Carrier
from .dequantisation import Dequantiser, dequantisers, uniforms
from .divergence import Divergence, divergences
from .log_density import LogProb as LogProb
from .log_density import degrees
from .plan import Plan
from .sde import Denoises

ADAPTIVE = "adams_adaptive(rtol=0.0001, atol=0.0001)"


def dequantise(x: Tensor, bin_width: float, seeds: Iterable[int]) -> Tensor:
    """x (B, *) spread uniformly over its bins: x + bin_width (u - 1/2), u from each sample's seed."""
    noise = uniforms(tuple(x.shape[1:]), list(seeds))
    return spread(x, bin_width, noise.to(x.device, torch.promote_types(x.dtype, torch.float32)))


def default_solver(steps: int | None, nfe: int | None) -> str:
    """The solver of a likelihood where none is named: one that chooses its steps, or ``heun`` for as many as asked."""
    return ADAPTIVE if steps is None and nfe is None else "heun"


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
            function is ``logsnr``. By default ``adams_adaptive`` with tolerances of 1e-4, or ``heun`` for steps or
            nfe. The state is float64, the network's input has the dtype of x, or its own.
        tolerance: instead of steps and nfe, the total error: in bits/dim where a bin width is known, else in nats.
            Steps and probes are chosen for it, see ``tolerance.meet``; ``solver_error`` comes with it.
        divergence: ``exact``, ``hutchinson(probes=4)``, ``orthogonal(probes=4)`` or ``hutchpp(vectors=2)``.
        seeds: of the probes and of the dequantiser's draws, one per sample, integers of at least 0; 0, 1, ... by
            default.
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
        batch_size: how many samples to carry at once; it does not change the values.

    >>> import scoresde, torch
    >>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
    >>> result = log_prob(target.denoiser(scoresde.VP()), torch.zeros(1, 2), steps=20, divergence="exact")
    >>> ratio = scoresde.VP()(1e-3).ratio
    >>> abs(result.nats.item() + math.log(2 * math.pi * (1 + ratio**2))) < 1e-6  # N(0, 1 + ratio^2) at its mean
    True

    Raises:
        InputError: see ``Plan.make``; also a stochastic solver, one that leaves torch where gradients are asked for,
            data that are empty, not floats or not finite, seeds that are not one integer a sample, a shortened range
            without a prior, a prior of another shape than (B,), a bin width or a tolerance that is no positive number,
            a dequantiser without a bin width or with data that are no levels, an error of fewer than four steps, a
            result that is not finite.
    """
    check_batch("x", x, condition)
    seeds = seeds_of(seeds, len(x))
    width = None if bin_width is None else positive("bin_width", bin_width)
    if tolerance is not None:
        if (steps, nfe, draws) != (None, None, 1):
            raise InputError("tolerance chooses the steps: leave out steps, nfe and draws")
        solvers.grids.make(grid or "logsnr")  # which adaptive solvers do not use
        from . import tolerance as meeting

        options: dict[str, Any] = {"prior": prior, "bin_width": width, "dequantiser": dequantiser}
        options |= {"t_min": t_min, "t_max": t_max, "batch_size": batch_size, "progress": progress}
        own, trials = seeds, meeting.other_seeds(seeds)

        def attempt(
            method: Solver, count: int | None, trace: Divergence, rows: slice, trial: bool, graph: bool
        ) -> LogProb:
            part = {name: value[rows] for name, value in (condition or {}).items()}
            return log_prob(
                denoiser, x[rows], method, grid if count is not None else None, count, divergence=trace,
                seeds=(trials if trial else own)[rows], condition=part, differentiable=graph, **options,
            )  # fmt: skip

        method, rule = meeting.solver_of(solver or ADAPTIVE), divergences.make(divergence)
        nats_of_it = meeting.in_nats(positive("tolerance", tolerance), width, x)
        return meeting.meet(attempt, method, rule, nats_of_it, len(x), x[0].numel(), differentiable)
    solver = solver or default_solver(steps, nfe)
    deterministic(solver)
    plan = Plan.make(denoiser, solver, grid or "logsnr", steps, nfe, t_min, t_max, stop=True)
    rule = divergences.make(divergence)
    start = plan.nodes[-1]
    check_end("the solve ends", prior, denoiser.sde, plan.nodes[0].t)
    noise = None if dequantiser is None else dequantisers.make(dequantiser)
    if noise is not None and width is None:
        raise InputError(f"the dequantiser {noise} needs the bin width of discrete data: give bin_width")
    if noise is not None and width is not None:
        on_lattice(x, width)
    if solvers.errors.positive_integer("draws", draws) > 1 and noise is None:
        raise InputError(f"draws={draws} are of a dequantiser: name one")
    others = solver_error.coarser(denoiser, plan, grid or "logsnr", t_min, t_max) if error else ()
    began = time.perf_counter()
    shape, d, dtype = tuple(x.shape[1:]), x[0].numel(), torch.promote_types(x.dtype, torch.float32)
    host = "cpu" if x.device.type == "mps" else x.device  # MPS has no float64
    carrier = Carrier(
        denoiser, rule, seeds, shape, dict(condition or {}), differentiable, dtype, x.device, batch_size, progress
    )

    def value(carrier: Carrier, path: Plan, draw: int) -> tuple[dict[str, Tensor], Carried]:
        y, law = x.to(host).double(), None
        if noise is not None and width is not None:
            u, law = noise.spread(x, uniforms(shape, seeds, draw), width, start)
            y = y + u.to(host)
        found = carrier.along(path, path.nodes[::-1], lambda rows: y[rows])
        ones = torch.ones(len(x), dtype=torch.float64, device=found.end.device)
        volume = d * math.log(width or 1.0)
        parts = {
            "prior": prior_at(prior, denoiser.sde, found.end),
            "divergence": -found.change.mean(1),
            "truncation": d * math.log(start.alpha) * ones,
            "dequantisation": 0 * ones if law is None else -law.to(ones) - volume,
            "offset": volume * ones,
        }
        return parts, found

    def values(carrier: Carrier, path: Plan) -> tuple[Tensor, list[dict[str, Tensor]], list[Carried]]:
        """Of all draws the sums (draws, B), the budgets, and what was carried."""
        parts, found = zip(*(value(carrier, path, draw) for draw in range(draws)), strict=True)
        return torch.stack([torch.stack(list(each.values())).sum(0) for each in parts]), list(parts), list(found)

    def weighted(totals: Tensor) -> Tensor:
        return totals[0] if draws == 1 else torch.logsumexp(totals, 0) - math.log(draws)

    with torch.set_grad_enabled(differentiable):
        totals, parts, made = values(carrier, plan)
        nats = weighted(totals)
        budget = {name: torch.stack([each[name] for each in parts]).mean(0) for name in parts[0]}
        if draws > 1:
            budget["importance"] = nats - totals.mean(0)
        # the draws share their probes: of each probe the weighted mean, and then the spread over the probes
        shares = torch.softmax(totals, 0).unsqueeze(2)
        stderr = rule.stderr(-(shares * torch.stack([found.change for found in made])).sum(0), d)
    gap, spent = None, torch.stack([found.nfe for found in made]).sum(0)
    if others:
        told = []
        with torch.no_grad():
            for other in others:
                sums, _, again = values(replace(carrier, differentiable=False), other)
                told.append(weighted(sums))
                spent = spent + torch.stack([found.nfe for found in again]).sum(0)
        gap = solver_error.bound(nats.detach(), *told)
    return LogProb(
        nats=nats,
        stderr=stderr,
        freedom=degrees(rule.channels(d), nats),
        stderr_of="" if rule.exact(d) else "the trace's probes",
        nfe=int(spent.max()),
        nfe_per_sample=spent,
        products=int(spent.max()) * rule.products(d),
        solver_error=gap,
        latent=made[0].end,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        bin_width=width,
        kind=("" if noise is None else "lower bound of the levels, by the ") + kind_of(rule, d),
    )


def kind_of(rule: Divergence, d: int) -> str:
    """What the ODE's value is with this trace of d dimensions."""
    return "exact ODE value" if rule.exact(d) else "estimate of the ODE value"
