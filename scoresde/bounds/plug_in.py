"""Lower bounds of the log-likelihood under every SDE between the reverse SDE and the probability-flow ODE.

With the model's score s in place of the true score, the SDEs

    backwards in time: drift (1 - k/2) g^2 s - f x, diffusion sqrt(1 - k) g,    0 <= k <= 1

have the same marginals if s is exact: k = 0 is the reverse SDE, k = 1 the ODE (Huang et al. 2021, arXiv:2106.02808,
section on plug-in reverse SDEs, with k for the paper's lambda). If s is not exact, they are different models.

For each SDE, the Feynman-Kac formula writes the density as a mean over paths from x at t_min to t_max. Girsanov's
theorem changes the law of these paths to any other with the same diffusion, and Jensen's inequality then gives the
paper's continuous-time bound. Here the paths follow the model's own score,
dx = (f x - k/2 g^2 s) dt + sqrt(1 - k) g dw, and Girsanov's theorem adds terms in a = sqrt(1 - k) g s:

    log p(x) >= E[ log p_T(x_T) - int ( |a|^2 / 2 + (1 - k/2) g^2 div s - div f ) dt ] = E[ the same - int a . dw ].

- k = 0: the paths are x_t = alpha x + sigma eps for every s. This is the bound of Song et al. 2021, arXiv:2101.09258,
  theorem 1, in the implicit form of score matching; its expectation is that of ``continuous_bound``.
- k = 1: there is no noise, a = 0, and this is log p of the ODE itself.
- s = grad log p_t: by Bayes' rule the paths have the law of the generative SDE, given that it ends in x. The bound is
  tight at every k. The expression on the right is then the same for every path: its last integral has mean 0 and
  removes all variance.

In the variables y = x / alpha, r = sigma / alpha and the denoiser D, with c = tr dD/dy and eps = (y - D) / r, this is

    dy = k eps dr + sqrt(1 - k) dB(r^2)
    log p(x) = log p_T + d log alpha_T + int ((2 - k)(d - c) - (1 - k)|eps|^2) dr / r + sqrt(1 - k) int (eps / r) . dB

(dB has the variance d(r^2)). A step is Heun's, of weak order 2 because the noise is additive. The last integral is the
trapezoid sum of eps / r . noise, less the mean of that sum. By Stein's identity this mean is half the variance of the
noise times div(eps / r) at the end of the step. The computed integral therefore has mean 0 for any number of steps and
follows the path to first order. (Ito's sum, of order one half, leaves a hundred times the variance at a hundred steps.)

As in ``log_prob``, the bound is for the density of x0 + ratio(t_min) eps at x. ``continuous_bound`` with the decoder
gaussian is the mean of this bound, at interpolation 0, over x + ratio(t_min) eps.

>>> import scoresde
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
>>> x = target.sample(20, torch.Generator().manual_seed(0))
>>> bound = plug_in_bound(target.denoiser(scoresde.VP()), x, 0.5, draws=4, divergence="exact")
>>> float((bound.nats - target.log_prob(x)).abs().mean()) < 0.1  # the bound of an exact score is tight
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Node, SeededNoise
from solvers.errors import positive_integer

from ..io.inputs import Array, Seeds
from ..likelihood.density_ode import DensitySolve, WithLogDensity
from ..likelihood.divergence import Divergence, divergences
from ..likelihood.inputs import check_end, positive, prior_at, seeds_of
from ..likelihood.log_prob import kind_of
from ..likelihood.result import LogProb, degrees, standard_error, with_counts
from ..models.counting import counted
from ..models.evaluation import evaluation, gradients, recordable
from ..models.model import as_model
from ..paths.base import ModelLike
from ..sampling.batches import Batching, batch_of, batches_of
from ..sampling.failures import check_how
from ..sampling.plan import Plan, PlanRequest
from .parts import reported, total

_PATHS = 7  # label of the generator's stream
_AT_ONCE = 2**14  # numbers of the states of a batch, beyond which it contains one path of each sample


def plug_in_bound(
    denoiser: ModelLike,
    x: Array,
    interpolation: float = 0.0,
    grid: str | Grid | None = None,
    steps: int | None = 100,
    *,
    draws: int = 16,
    divergence: str | Divergence = "hutchinson(probes=1)",
    seeds: Seeds | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    bin_width: float | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> LogProb:
    """Lower bound, in nats, of log p(x) under an SDE between the reverse SDE and the probability-flow ODE.

    Args:
        x: data (B, *); levels must already be spread over their bins.
        interpolation: the position between the two, the paper's lambda: 0 is the reverse SDE, 1 is the ODE, for which
            the result is its exact value and not a bound.
        grid, steps, t_min, t_max: the nodes of the paths; the default grid is ``logsnr``. Each step takes two
            evaluations.
        draws: the number of paths per sample, whose spread gives the standard error. If the score is not exact, the law
            of a path is skewed, and an interval from few draws covers a little less often than its level.
        divergence, prior, condition, batch_size, on_failure: as in ``log_prob``; every path has its own probes.
        seeds: the seeds of the paths and probes, one per sample; by default 0, 1, ...
        bin_width: the bin width of discrete data that were spread over their bins (``dequantise``), for bits/dim.

    Returns:
        A ``LogProb``: ``nats`` (B,) is a lower bound in expectation, ``stderr`` (B,) its standard error over the draws,
        probes included, and ``latent`` the end of the first path. The budget contains the means of ``prior``,
        ``integral`` and ``martingale`` (whose expectation is 0), and ``truncation`` and ``offset`` as in ``log_prob``.

    Raises:
        InputError: see ``scoresde.plan``; also if the interpolation is outside [0, 1], the data are empty, not floats
            or not finite, the range is shortened without a prior, or all samples fail.
    """
    check_how(on_failure)
    if not 0 <= interpolation <= 1:
        raise InputError(f"interpolation must be between 0, the reverse SDE, and 1, the ODE, got {interpolation!r}")
    x, conditions = batch_of("x", x, condition, denoiser := as_model(denoiser))
    plan = Plan.make(denoiser, PlanRequest("heun", grid or "logsnr", steps, None, t_min, t_max), end_at_t_min=True)
    rule, batching = divergences.make(divergence), Batching(batch_size, x.device, x.dtype, progress)
    positive_integer("draws", draws)
    width = None if bin_width is None else positive("bin_width", bin_width)
    check_end("the paths end", prior, denoiser.sde, plan.nodes[0].t)
    with evaluation(denoiser), gradients(False):
        given = {name: recordable(value) for name, value in conditions.items()}
        solve = DensitySolve(denoiser, rule, seeds_of(seeds, len(x)), tuple(x.shape[1:]), given, batching)
        with counted() as work:
            found = _Paths(solve, plan, interpolation, draws, prior, width).bound(recordable(x))
    return reported(with_counts(found, work), on_failure)


@dataclass(frozen=True)
class _Paths:
    """The simulation of a bound's paths; ``solve`` contains the seeds of the samples."""

    solve: DensitySolve
    plan: Plan
    interpolation: float
    draws: int
    prior: Callable[[Tensor], Tensor] | None
    bin_width: float | None

    def bound(self, x: Tensor) -> LogProb:
        """The bound of data (B, *)."""
        began, rule, d = time.perf_counter(), self.solve.divergence, x[0].numel()
        found, latent = self._terms(x)
        ones, k = torch.ones_like(found[:, 0, 0]), self.interpolation
        budget = {
            **dict(zip(("prior", "integral", "martingale"), found.mean(1).unbind(1), strict=True)),
            "truncation": d * math.log(self.plan.nodes[0].alpha) * ones,  # converts p_T to the scale of x / alpha
            "offset": d * math.log(self.bin_width or 1.0) * ones,
        }
        nfe = 2 * self.plan.steps * self.draws
        nats = total(budget)
        drawn = ["the paths"] * (k < 1) + ["the trace's probes"] * (not rule.exact(d))
        return LogProb(
            nats=nats,
            stderr=standard_error(found.sum(2)) if drawn else 0 * ones,
            freedom=degrees(self.draws, nats),
            stderr_of=" and ".join(drawn),
            nfe=nfe,
            nfe_per_sample=torch.full((len(x),), nfe),
            latent=latent,
            budget=budget,
            solver=f"plug-in SDE, interpolation {k:g}",
            grid=self.plan.grid,
            divergence=str(rule),
            seconds=time.perf_counter() - began,
            bin_width=self.bin_width,
            kind=kind_of(rule, d) if k == 1 else f"lower bound, of the plug-in SDE {k:g} of the way to the ODE",
        )

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prior, integral and martingale of every path (B, draws, 3), and the ends (B, *) of the first paths."""
        last, sde = self.plan.nodes[0], self.plan.sde
        batches = self.solve.batching.rows(len(x))
        # every path has its own seed; that of the k-th path does not depend on the number of draws
        own = [
            torch.randint(2**62, (self.draws,), generator=solvers.generator(seed, _PATHS)).tolist()
            for seed in self.solve.seeds
        ]
        found, latents = [], []
        with self.solve.batching.bar(self.draws * len(batches), "bound") as bar, torch.no_grad():
            for rows in batches:
                terms, ends = [], []
                for paths in batches_of(self.draws, self._at_once(x[rows])):
                    some, count = x[rows], paths.stop - paths.start
                    seeds = [row[k] for k in range(paths.start, paths.stop) for row in own[rows]]
                    problem = self._repeated(rows, seeds, count)
                    many = some.repeat(count, *[1] * (x.ndim - 1))  # one path of all samples after the other
                    y, integral, martingale = _climb(problem, many, self.plan.nodes[::-1], self.interpolation, seeds)
                    ends.append((last.alpha * y).view(many.shape))
                    prior = torch.cat([prior_at(self.prior, sde, end) for end in torch.split(ends[-1], len(some))])
                    parts = torch.stack([prior, integral, martingale], 1)
                    terms.append(parts.view(count, len(some), 3))
                    bar.update(count)
                latents.append(ends[0][: len(x[rows])])
                found.append(torch.cat(terms).transpose(0, 1))
        return torch.cat(found), torch.cat(latents)

    def _at_once(self, x: Tensor) -> int:
        """How many paths of the samples x (B, *) are simulated in one batch.

        A network takes as long for a few small states as for one. Large ones keep the memory of one path each.
        """
        limit = self.solve.batching.batch_size
        many = _AT_ONCE // x.numel() if limit is None else limit // len(x)
        return min(max(1, many), self.draws)

    def _repeated(self, rows: slice, seeds: list[int], count: int) -> WithLogDensity:
        """The problem of ``count`` paths of some samples, one path of all of them after the other."""
        given = {
            name: value[rows].repeat(count, *[1] * (value.ndim - 1)) for name, value in self.solve.conditions.items()
        }
        return replace(self.solve, seeds=seeds, conditions=given).problem(slice(None))


def _climb(
    problem: WithLogDensity, x: Tensor, nodes: tuple[Node, ...], k: float, seeds: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Simulates one path for each sample x (B, *) through nodes from data to noise.

    Returns y = x / alpha at the end of the path (B, d), the integral and the martingale (each (B,), in nats).
    """
    m, d = problem.channels, x[0].numel()
    y = problem.start(x, nodes[0])[:, :d] / nodes[0].alpha
    source = SeededNoise(seeds, (d,), torch.float64, y.device)
    integral, martingale = torch.zeros_like(y[:, 0]), torch.zeros_like(y[:, 0])

    def at(y: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The prediction eps (B, d), and d - c = r div eps (B,)."""
        found = problem.predict(torch.cat([node.alpha * y, y.new_zeros(len(y), m)], 1), node)
        # for channels at 0, x0 is (1 + r) M / r with M = -r (c - d / (1 + r^2))
        c = d / (1 + node.ratio**2) - found.x0[:, d:].mean(1) / (1 + node.ratio)
        return found.eps[:, :d], d - c

    def integrand(eps: Tensor, spread: Tensor) -> Tensor:
        return (2 - k) * spread - (1 - k) * eps.square().sum(1)

    for t, s in pairwise(nodes):
        variance, rise = (1 - k) * (s.ratio**2 - t.ratio**2), k * (s.ratio - t.ratio)
        noise = math.sqrt(variance) * source.draw() if k < 1 else torch.zeros_like(y)
        eps, spread = at(y, t)
        ahead, spread_ahead = at(y + rise * eps + noise, s)
        both = integrand(eps, spread) + integrand(ahead, spread_ahead)
        integral = integral + 0.5 * math.log(s.ratio / t.ratio) * both
        # Stein's identity: the mean of (ahead / s) . noise is the variance times the mean divergence of ahead / s
        swing = ((eps / t.ratio + ahead / s.ratio) * noise).sum(1) - variance / s.ratio**2 * spread_ahead
        martingale = martingale + 0.5 * swing
        y = y + 0.5 * rise * (eps + ahead) + noise
    return y, integral, martingale
