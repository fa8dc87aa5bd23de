"""Samples and their log-density in one solve: the ODE carries both from noise to data.

log p(x) = log p_T(x_T) + int div is as true on the way down as on the way up, so a sample that the ODE makes comes
with its likelihood for the price of the vector-Jacobian products. Importance weights, reverse Kullback-Leibler
divergences and Boltzmann generators ask for the pair (Chen et al. 2018, arXiv:1806.07366, eq. 8).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

import solvers
from solvers import Grid, InputError, Node, SeededNoise, Solver

from .divergence import Divergence, Exact, divergences
from .likelihood import LogProb
from .problem import WithLogDensity
from .sample import Plan, batches_of, check_batch, check_conditions, check_finite
from .sde import Denoises


def sample_with_log_prob(
    denoiser: Denoises,
    shape: Sequence[int],
    seeds: Iterable[int],
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
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

    Seed i starts where ``sample`` starts it, and draws the probes that ``log_prob`` draws for it: the two agree with
    this function up to the solver's error, in x and in nats.

    Args:
        shape: of one sample.
        seeds: of the start and of the probes, one per sample; sample i depends on seed i alone.
        solver, grid, steps, nfe, divergence: as for ``log_prob``. The solve ends at t_min.
        x_init: the states (B, *) to start from at t_max, instead of draws of N(0, (alpha^2 + sigma^2) I).
        prior: log-density (B,) at t_max of states (B, *), the law that ``x_init`` was drawn from; by default the SDE's.
        dtype: what the network sees and the samples have; the state is float64.
        batch_size: how many samples to carry at once; it does not change them.
        differentiable: keep the graph, so that samples and ``nats`` can be differentiated by ``x_init``, the parameters
            and the conditions.

    Returns:
        The samples x (B, *) on the data's own scale, x_{t_min} / alpha(t_min), and their likelihood: ``nats`` is what
        ``log_prob(denoiser, x)`` finds, ``latent`` the start. Samples and density both have the noise of t_min.

    >>> import scoresde
    >>> target = scoresde.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.04)
    >>> denoiser = target.denoiser(scoresde.VP())
    >>> x, found = sample_with_log_prob(denoiser, (1,), range(4), steps=100, divergence="exact", dtype=torch.float64)
    >>> float((found.nats - target.log_prob(x)).abs().max()) < 2e-2
    True

    Raises:
        InputError: see ``Plan.make``; also a stochastic solver, no seeds, ``x_init`` or conditions of another length,
            a shortened range without ``x_init`` and ``prior``, a ``prior`` without ``x_init``, a result that is not
            finite.
    """
    plan = Plan.make(denoiser, solver or "heun", grid or "logsnr", steps, nfe, t_min, t_max, stop=True)
    rule = divergences.make(divergence)
    if not isinstance(seeds, Iterable) or not isinstance(shape, Iterable):
        raise InputError(f"seeds and shape are lists of integers, got {seeds!r} and {shape!r}")
    seeds, shape = list(seeds), tuple(shape)
    for length in shape:
        solvers.errors.positive_integer("every length in shape", length)
    if not seeds:
        raise InputError("nothing to do: no seeds")
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a float type, got {dtype}")
    if plan.solver.stochastic:
        raise InputError(f"{plan.solver} draws noise; a likelihood needs a deterministic solver")
    noisy, clean, d = plan.nodes[0], plan.nodes[-1], math.prod(shape)
    if prior is not None and x_init is None:
        raise InputError("a prior of one's own has to be drawn from: give x_init")
    if prior is None and not math.isclose(noisy.t, denoiser.sde.t_max, rel_tol=1e-9):
        t = noisy.t
        raise InputError(f"the solve starts at t={t:g}, not t_max={denoiser.sde.t_max:g}: give x_init and its prior")
    if x_init is not None:
        if tuple(x_init.shape) != (len(seeds), *shape):
            raise InputError(f"x_init is {tuple(x_init.shape)}, for {len(seeds)} seeds of shape {shape}")
        check_batch("x_init", x_init)
    check_conditions(condition, len(seeds))
    began = time.perf_counter()
    batches = batches_of(len(seeds), batch_size)
    latents, ends, integrals, counts = [], [], [], []
    bar = tqdm(total=(len(plan.nodes) - 1) * len(batches), desc="samples", disable=not progress, leave=False)

    def advance(state: Tensor, node: Node) -> None:
        bar.update()

    with bar, torch.set_grad_enabled(differentiable):
        for rows in batches:
            problem = WithLogDensity(
                denoiser,
                shape,
                {name: value[rows] for name, value in (condition or {}).items()},
                rule,
                rule.draw(seeds[rows], d),
                differentiable,
                dtype,
                device,
            )
            if x_init is None:
                std = math.hypot(noisy.alpha, noisy.sigma)
                x = std * SeededNoise(seeds[rows], shape, torch.float64).initial()
            else:
                x = x_init[rows]
            state = problem.start(x / noisy.alpha, noisy)
            solution = solvers.solve(plan.solver, problem, state, plan.nodes, hooks=[advance])
            samples, channels = problem.split(solution.x)
            latents.append(problem.split(state)[0])
            ends.append(samples / clean.alpha)
            # l is the log-density of x / alpha: back to that of x at both ends
            change = problem.log_density_change(channels, noisy, clean) - d * math.log(clean.alpha / noisy.alpha)
            integrals.append(change)
            counts.append(solution.nfe)
        latent, integral, spent = torch.cat(latents), torch.cat(integrals), torch.cat(counts)
        y = torch.cat(ends)
        check_finite(torch.cat([y.flatten(1), integral], 1), plan)
        budget = {
            "prior": (prior or denoiser.sde.prior().log_prob)(latent).double(),
            "divergence": integral.mean(1),
            "truncation": d * math.log(clean.alpha) * torch.ones_like(integral[:, 0]),
        }
    found = LogProb(
        nats=torch.stack(list(budget.values())).sum(0),
        stderr=rule.stderr(integral, d),
        nfe=int(spent.max()),
        nfe_per_sample=spent,
        products=int(spent.max()) * rule.products(d),
        latent=latent,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        kind="exact ODE value" if isinstance(rule, Exact) else "estimate of the ODE value",
    )
    return y.to(dtype).to(device), found
