"""Samples and their log-density in one solve: the ODE moves both from noise to data.

log p(x) = log p_T(x_T) + int div is true in both directions of time. A solve from noise to data can therefore compute
the likelihood of its samples as well; the extra cost is the vector-Jacobian products. Importance weights, reverse
Kullback-Leibler divergences and Boltzmann generators need this pair (Chen et al. 2018, arXiv:1806.07366, eq. 8).

Seed i has the same start as in ``sample`` and the same probes as in ``log_prob``. The samples agree with ``sample``,
and the nats with ``log_prob`` at these samples, up to the error of the solver.

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
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from solvers import Grid, InputError, SeededNoise, Solver

from ..io.inputs import Array, Seeds, conditions_of, device_of, draws_of, dtype_of
from ..models.counting import counted
from ..models.evaluation import evaluation, gradients, recordable
from ..models.faults import checked_model
from ..models.model import as_model
from ..paths.base import ModelLike
from ..sampling.batches import Batching, check_start
from ..sampling.failures import check_how, report
from ..sampling.plan import Plan, PlanRequest
from .density_ode import DensitySolve
from .divergence import Divergence, rule_of
from .inputs import prior_at
from .log_prob import choose_plan_to_t_min, kind_of
from .result import LogProb, degrees, with_counts


def sample_with_log_prob(
    denoiser: ModelLike,
    shape: Sequence[int] | int | None = None,
    seeds: Seeds | None = None,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    plan: Plan | None = None,
    divergence: str | Divergence | None = None,
    x_init: Array | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Array] | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    differentiable: bool = False,
    progress: bool = False,
    on_failure: str = "warn",
) -> tuple[Tensor, LogProb]:
    """Draws one sample per seed, and computes the log-density of the model's ODE at that sample.

    Args:
        shape, seeds: as in ``sample``; the seeds are those of the start and of the probes.
        solver, grid, steps, nfe, t_min, t_max, plan, divergence: as in ``log_prob``. The solve ends at t_min.
        x_init: the states (B, *) to start from at t_max, instead of draws of N(0, (alpha^2 + sigma^2) I).
        prior: the log-density (B,) of states (B, *) at t_max, for the law of ``x_init``; by default the SDE's prior.
        dtype, device, batch_size, progress: see ``Batching``; samples have that dtype, the state is float64.
        differentiable: keep the graph, so that samples and ``nats`` can be differentiated by ``x_init``, the parameters
            and the conditions.
        on_failure: see ``sample``.

    Returns:
        The samples x (B, *) on the scale of the data, x_{t_min} / alpha(t_min), and their ``LogProb``: ``nats`` is the
        value of ``log_prob(denoiser, x)``, ``latent`` the start. Samples and density both include the noise at t_min.

    Raises:
        InputError: see ``log_prob``; also if there are no seeds, ``x_init`` has a different length, the range is
            shortened without ``x_init`` and ``prior``, or ``prior`` is given without ``x_init``.
    """
    check_how(on_failure)
    denoiser = checked_model(denoiser)
    made = choose_plan_to_t_min(plan, denoiser, PlanRequest(solver, grid, steps, nfe, t_min, t_max))
    given, lengths, start = draws_of(seeds, shape, x_init, denoiser.shape)
    _check(made, given, lengths, start, prior)
    batching = Batching(batch_size, device_of(device), dtype_of(dtype), progress)
    conditions = conditions_of(condition, len(given), batching.device, denoiser.conditions, denoiser.given)
    rule = rule_of(divergence, math.prod(lengths))
    made.warn_of_width(denoiser.output)
    with evaluation(denoiser), gradients(differentiable):
        conditions = {name: recordable(value) for name, value in conditions.items()}
        solve = DensitySolve(denoiser, rule, given, lengths, conditions, batching, differentiable)
        with counted() as count:
            x, found = _solved(solve, made, None if start is None else recordable(start), prior)
    report(found.failures, len(given), on_failure, f"{made.solver} on {made.grid}")
    return x.to(batching.dtype).to(batching.device), with_counts(found, count)


def _check(
    plan: Plan,
    seeds: list[int],
    shape: tuple[int, ...],
    x_init: Tensor | None,
    prior: Callable[[Tensor], Tensor] | None,
) -> None:
    """Rejects starts whose density is not known.

    Raises:
        InputError: see ``sample_with_log_prob``.
    """
    if not seeds:
        raise InputError("there are no seeds; at least one is needed")
    if prior is not None and x_init is None:
        raise InputError("a custom prior needs its own draws: pass them as x_init")
    t, t_max = plan.nodes[0].t, plan.sde.t_max
    if prior is None and not math.isclose(t, t_max, rel_tol=1e-9):
        raise InputError(f"the solve starts at t={t:g}, not t_max={t_max:g}: pass x_init and its prior")
    check_start(x_init, len(seeds), shape)


def _solved(
    solve: DensitySolve, plan: Plan, x_init: Tensor | None, prior: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, LogProb]:
    """The samples (B, *) in float64 and their likelihood."""
    began, rule, d = time.perf_counter(), solve.divergence, math.prod(solve.shape)
    noisy, clean = plan.nodes[0], plan.nodes[-1]

    def start(rows: slice) -> Tensor:
        if x_init is not None:
            return x_init[rows] / noisy.alpha
        noise = SeededNoise(solve.seeds[rows], solve.shape, torch.float64).initial()
        return math.hypot(noisy.alpha, noisy.sigma) / noisy.alpha * noise

    solution = solve.run(plan, start)
    budget = {
        "prior": prior_at(prior, plan.sde, solution.start),
        "divergence": solution.change.mean(1),
        "truncation": d * math.log(clean.alpha) * torch.ones_like(solution.change[:, 0]),
    }
    nats = torch.stack(list(budget.values())).sum(0)
    return solution.end / clean.alpha, LogProb(
        nats=nats,
        stderr=rule.stderr(solution.change, d),
        freedom=degrees(rule.channels(d), nats),
        stderr_of="" if rule.exact(d) else "the trace's probes",
        nfe=int(solution.nfe.max()),
        nfe_per_sample=solution.nfe,
        density=as_model(solve.denoiser).density,
        latent=solution.start,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        kind=kind_of(rule, d),
        failures=solution.failures,
    )
