"""Log-likelihood by the probability-flow ODE, with any deterministic solver.

log p(x) = log p_T(x_T) + int div, where x is carried from t_min to t_max. What is reported is the density, on the
data's own scale, of x0 + (sigma / alpha)(t_min) eps: x enters the path as alpha(t_min) x, and the change of scale is
the budget's ``truncation``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

import solvers
from solvers import Grid, InputError, Node, Solver, generator

from .data import spread
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
            noise), ``offset`` (the log of the bin's volume, where a bin width is known).
        bin_width: distance between neighbouring levels of the data, None for continuous data.
        kind: what the number is.
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
        work = f"{self.nfe} NFE" + (f", {self.products} vector-Jacobian products" if self.products else "")
        lines.append(f"  {self.solver} on {self.grid}, {work}, {self.seconds:.1f} s")
        return "\n".join(lines)


def dequantise(x: Tensor, bin_width: float, seeds: Iterable[int]) -> Tensor:
    """x (B, *) spread uniformly over its bins: x + bin_width (u - 1/2), u from each sample's seed."""
    rows = [torch.rand(x.shape[1:], generator=generator(seed, 3), dtype=torch.float64) for seed in seeds]
    return spread(x, bin_width, torch.stack(rows).to(x))


def log_prob(
    denoiser: Denoises,
    x: Tensor,
    solver: str | Solver = "heun",
    grid: str | Grid | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    divergence: str | Divergence = "hutchinson",
    seeds: Iterable[int] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    bin_width: float | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogProb:
    """Log-likelihood of samples x (B, *) under the model's probability-flow ODE.

    Args:
        solver, grid, steps, nfe: as for ``sample``; the solver must be deterministic, and the default grid of this
            function is ``logsnr``. The state is float64, the network's input has the dtype of x.
        divergence: ``exact`` or ``hutchinson(probes=4)``.
        seeds: of the probes, one per sample; 0, 1, ... by default.
        prior: log-density (B,) at t_max of states (B, *); by default the SDE's prior. A solve that ends before the
            SDE's t_max has no default.
        bin_width: of discrete data (x already dequantised, see ``dequantise``): nats are then of the level's
            probability, and ``bits_per_dim`` is defined.
        batch_size: how many samples to carry at once; it does not change the values.

    >>> import scoresde, torch
    >>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
    >>> result = log_prob(target.denoiser(scoresde.VP()), torch.zeros(1, 2), steps=20, divergence="exact")
    >>> ratio = scoresde.VP()(1e-3).ratio
    >>> abs(result.nats.item() + math.log(2 * math.pi * (1 + ratio**2))) < 1e-6  # N(0, 1 + ratio^2) at its mean
    True

    Raises:
        InputError: see ``Plan.make``; also a stochastic solver, data that are empty, not floats or not finite, a
            shortened range without a prior, a result that is not finite.
    """
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
    shape, d = tuple(x.shape[1:]), x[0].numel()
    batches = batches_of(len(x), batch_size)
    began = time.perf_counter()
    latents, integrals, counts = [], [], []
    bar = tqdm(total=(len(plan.nodes) - 1) * len(batches), desc="log p", disable=not progress, leave=False)

    def advance(state: Tensor, node: Node) -> None:
        bar.update()

    with bar:
        for rows in batches:
            conditions = {name: value[rows] for name, value in (condition or {}).items()}
            vectors = rule.draw(seeds[rows], d)
            problem = WithLogDensity(denoiser, shape, conditions, rule, vectors, dtype=x.dtype, device=x.device)
            state = problem.start(x[rows], start)
            solution = solvers.solve(plan.solver, problem, state, plan.nodes[::-1], hooks=[advance])
            latent, channels = problem.split(solution.x)
            # l is the log-density of x / alpha: back to that of x at both ends
            change = problem.log_density_change(channels, start, end) - d * math.log(end.alpha / start.alpha)
            latents.append(latent)
            integrals.append(-change)
            counts.append(solution.nfe)
    latent, integral, nfe = torch.cat(latents), torch.cat(integrals), torch.cat(counts)
    check_finite(torch.cat([latent.flatten(1), integral], 1), plan)
    ones = torch.ones(len(x), dtype=torch.float64, device=latent.device)
    budget = {
        "prior": (prior or denoiser.sde.prior().log_prob)(latent).double(),
        "divergence": integral.mean(1),
        "truncation": d * math.log(start.alpha) * ones,
        "dequantisation": 0 * ones,
        "offset": d * math.log(1.0 if bin_width is None else bin_width) * ones,
    }
    return LogProb(
        nats=torch.stack(list(budget.values())).sum(0),
        stderr=rule.stderr(integral, d),
        nfe=int(nfe.max()),
        nfe_per_sample=nfe,
        products=int(nfe.max()) * rule.products(d),
        latent=latent,
        budget=budget,
        solver=str(plan.solver),
        grid=plan.grid,
        divergence=str(rule),
        seconds=time.perf_counter() - began,
        bin_width=bin_width,
        kind="exact ODE value" if isinstance(rule, Exact) else "estimate of the ODE value",
    )
