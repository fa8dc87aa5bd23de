"""Samples and their log-density in one solve: the ODE carries both from noise to data.

log p(x) = log p_T(x_T) + int div is as true on the way down as on the way up, so a sample that the ODE makes comes
with its likelihood for the price of the vector-Jacobian products. Importance weights, reverse Kullback-Leibler
divergences and Boltzmann generators ask for the pair (Chen et al. 2018, arXiv:1806.07366, eq. 8). Seed i starts where
``sample`` starts it, and draws the probes that ``log_prob`` draws for it: the two agree with
``sample_with_log_prob`` up to the solver's error, in x and in nats.

>>> import scoresde
>>> target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.04)
>>> denoiser = target.denoiser(scoresde.VP())
>>> x, found = sample_with_log_prob(denoiser, (1,), range(4), steps=100, divergence="exact", dtype=torch.float64)
>>> float((found.nats - target.log_prob(x)).abs().max()) < 2e-2
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from solvers import Grid, InputError, SeededNoise, Solver

from ..paths.base import Denoises
from ..sampling.batches import Batching, check_conditions, check_draws, check_start
from ..sampling.plan import Plan
from .density_ode import Carrier
from .divergence import Divergence, divergences
from .inputs import prior_at, seeds_of
from .log_prob import kind_of, planned_up
from .result import LogProb, degrees


def sample_with_log_prob(
    denoiser: Denoises,
    shape: Sequence[int],
    seeds: Iterable[int],
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    divergence: str | Divergence = "hutchinson",
    x_init: Tensor | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    differentiable: bool = False,
    progress: bool = False,
) -> tuple[Tensor, LogProb]:
    """Draws one sample per seed, with the log-density of the model's ODE at exactly that sample.

    Args:
        shape: of one sample.
        seeds: of the start and of the probes, one per sample; sample i depends on seed i alone.
        solver, grid, steps, nfe, t_min, t_max, plan, divergence: as for ``log_prob``. The solve ends at t_min.
        x_init: the states (B, *) to start from at t_max, instead of draws of N(0, (alpha^2 + sigma^2) I).
        prior: log-density (B,) at t_max of states (B, *), the law that ``x_init`` was drawn from; by default the SDE's.
        dtype, device, batch_size, progress: see ``Batching``; samples have that dtype, the state is float64.
        differentiable: keep the graph, so that samples and ``nats`` can be differentiated by ``x_init``, the parameters
            and the conditions.

    Returns:
        The samples x (B, *) on the data's own scale, x_{t_min} / alpha(t_min), and their likelihood: ``nats`` is what
        ``log_prob(denoiser, x)`` finds, ``latent`` the start. Samples and density both have the noise of t_min.

    Raises:
        InputError: see ``log_prob``; also no seeds, ``x_init`` of another length, a shortened range without ``x_init``
            and ``prior``, a ``prior`` without ``x_init``.
    """
    made = planned_up(plan, denoiser, solver, grid, steps, nfe, t_min, t_max)
    seeds, shape = check_draws(seeds, shape)
    seeds = seeds_of(seeds, len(seeds))
    _check(made, seeds, shape, x_init, prior)
    check_conditions(condition, len(seeds))
    batching = Batching(batch_size, device, dtype, progress)
    rule = divergences.make(divergence)
    carrier = Carrier(denoiser, rule, seeds, shape, condition or {}, batching, differentiable)
    with torch.set_grad_enabled(differentiable):
        x, found = _carried(carrier, made, x_init, prior)
    return x.to(dtype).to(device), found


def _check(
    plan: Plan,
    seeds: list[int],
    shape: tuple[int, ...],
    x_init: Tensor | None,
    prior: Callable[[Tensor], Tensor] | None,
) -> None:
    """Refuses starts without a density.

    Raises:
        InputError: see ``sample_with_log_prob``.
    """
    if not seeds:
        raise InputError("nothing to do: no seeds")
    if prior is not None and x_init is None:
        raise InputError("a prior of one's own has to be drawn from: give x_init")
    t, t_max = plan.nodes[0].t, plan.sde.t_max
    if prior is None and not math.isclose(t, t_max, rel_tol=1e-9):
        raise InputError(f"the solve starts at t={t:g}, not t_max={t_max:g}: give x_init and its prior")
    check_start(x_init, len(seeds), shape)


def _carried(
    carrier: Carrier, plan: Plan, x_init: Tensor | None, prior: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, LogProb]:
    """The samples (B, *) in float64 and their likelihood."""
    began, rule, d = time.perf_counter(), carrier.divergence, math.prod(carrier.shape)
    noisy, clean = plan.nodes[0], plan.nodes[-1]

    def start(rows: slice) -> Tensor:
        if x_init is not None:
            return x_init[rows] / noisy.alpha
        noise = SeededNoise(carrier.seeds[rows], carrier.shape, torch.float64).initial()
        return math.hypot(noisy.alpha, noisy.sigma) / noisy.alpha * noise

    carried = carrier.along(plan, start)
    budget = {
        "prior": prior_at(prior, plan.sde, carried.start),
        "divergence": carried.change.mean(1),
        "truncation": d * math.log(clean.alpha) * torch.ones_like(carried.change[:, 0]),
    }
    nats = torch.stack(list(budget.values())).sum(0)
    return carried.end / clean.alpha, LogProb(
        nats=nats,
        stderr=rule.stderr(carried.change, d),
        freedom=degrees(rule.channels(d), nats),
        stderr_of="" if rule.exact(d) else "the trace's probes",
        nfe=int(carried.nfe.max()),
        nfe_per_sample=carried.nfe,
        products=int(carried.nfe.max()) * rule.products(d),
        latent=carried.start,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        kind=kind_of(rule, d),
    )
