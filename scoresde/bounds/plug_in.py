"""Lower bounds of the log-likelihood under every SDE between the reverse SDE and the probability-flow ODE.

With the model's score s in the place of the true one, the SDEs

    backwards in time: drift (1 - k/2) g^2 s - f x, diffusion sqrt(1 - k) g,    0 <= k <= 1

have the same marginals where s is right: k = 0 is the reverse SDE, k = 1 the ODE (Huang et al. 2021, arXiv:2106.02808,
section on plug-in reverse SDEs, with k for the paper's lambda). Where s is wrong they are different models.

For each, Feynman and Kac give the density as a mean over paths that run up from x, and Girsanov's theorem changes their
law to any other with the same diffusion; Jensen then gives the paper's continuous-time bound. Here they run up by the
model's own score, dx = (f x - k/2 g^2 s) dt + sqrt(1 - k) g dw, which Girsanov pays for with a = sqrt(1 - k) g s:

    log p(x) >= E[ log p_T(x_T) - int ( |a|^2 / 2 + (1 - k/2) g^2 div s - div f ) dt ] = E[ the same - int a . dw ].

- k = 0: paths are x_t = alpha x + sigma eps whatever s is, and this is the bound of Song et al. 2021, arXiv:2101.09258,
  theorem 1, by score matching's implicit form: in expectation that of ``continuous_bound``.
- k = 1: there is no noise, a = 0, and this is log p of the ODE itself.
- s = grad log p_t: by Bayes' rule the paths are those that the generative SDE takes to x. The bound is tight at every k
  and, as it stands on the right, the same on every path: the last integral has no mean and takes all variance out.

In y = x / alpha, r = sigma / alpha and D, the denoiser, with c = tr dD/dy and eps = (y - D) / r, all on the left is

    dy = k eps dr + sqrt(1 - k) dB(r^2)
    log p(x) = log p_T + d log alpha_T + int ((2 - k)(d - c) - (1 - k)|eps|^2) dr / r + sqrt(1 - k) int (eps / r) . dB

(dB has the variance d(r^2)). A step is Heun's, of weak order 2 as noise is additive. The last integral
is the trapezoid sum of eps / r . noise less that sum's own mean, by Stein's identity half the noise's variance times
div(eps / r) at the step's end: so it has no mean at any step, and follows the path to first order. (Ito's own sum, of
order one half, leaves a hundred times the variance at a hundred steps.)

Like ``log_prob`` the bound speaks of the density of x0 + ratio(t_min) eps at x: ``continuous_bound`` with the decoder
gaussian is the mean of this one, at interpolation 0, over x + ratio(t_min) eps.

>>> import scoresde
>>> target = scoresde.targets.Gaussian(torch.zeros(2), 1.0)
>>> x = target.sample(20, torch.Generator().manual_seed(0))
>>> bound = plug_in_bound(target.denoiser(scoresde.VP()), x, 0.5, draws=4, divergence="exact")
>>> float((bound.nats - target.log_prob(x)).abs().mean()) < 0.1  # a right score's bound is tight
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

import solvers
from solvers import Grid, InputError, Node, SeededNoise
from solvers.errors import positive_integer

from ..likelihood.density_ode import Carrier, WithLogDensity
from ..likelihood.divergence import Divergence, divergences
from ..likelihood.inputs import check_end, positive, prior_at, seeds_of
from ..likelihood.log_prob import kind_of
from ..likelihood.result import LogProb, degrees, standard_error
from ..paths.base import Denoises
from ..sampling.batches import Batching, check_batch, check_finite
from ..sampling.plan import Plan

_PATHS = 7  # label of the generator's stream
_ANY = (Node(0.0, 1.0, 0.0), Node(0.0, 1.0, 0.0))  # an interval of zero length: a fresh draw


def plug_in_bound(
    denoiser: Denoises,
    x: Tensor,
    interpolation: float = 0.0,
    grid: str | Grid | None = None,
    steps: int | None = 100,
    *,
    draws: int = 16,
    divergence: str | Divergence = "hutchinson(probes=1)",
    seeds: Iterable[int] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    bin_width: float | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogProb:
    """Lower bound of log p(x) under the SDE that lies ``interpolation`` of the way from the reverse SDE to the ODE.

    Args:
        x: data (B, *), of levels those spread over their bins.
        interpolation: the paper's lambda, from 0, the reverse SDE, to 1, the ODE, whose value is no bound but exact.
        grid, steps, t_min, t_max: of the paths; by default ``logsnr``. Each step takes two evaluations.
        draws: paths per sample; their spread is the standard error. Of a wrong score a path's law is skewed, and an
            interval of few draws covers a little less often than it says.
        divergence, prior, condition, batch_size: as for ``log_prob``; every path has its own probes.
        seeds: of paths and probes, one per sample; 0, 1, ... by default.
        bin_width: of discrete data that were spread over their bins (``dequantise``), for bits/dim.

    Returns:
        nats (B,), a lower bound in expectation; stderr (B,) of the draws, probes included; ``latent`` the first path's
        end. The budget holds the means of ``prior``, of ``integral`` and of ``martingale``, which is noise about 0, and
        ``truncation`` and ``offset`` as of ``log_prob``.

    Raises:
        InputError: see ``scoresde.plan``; an interpolation outside [0, 1], data that are empty, not floats or not
            finite, a shortened range without a prior, a result that is not finite.
    """
    if not 0 <= interpolation <= 1:
        raise InputError(f"interpolation goes from 0, the reverse SDE, to 1, the ODE, got {interpolation!r}")
    plan = Plan.make(denoiser, "heun", grid or "logsnr", steps, None, t_min, t_max, stop=True)
    rule, batching = divergences.make(divergence), Batching(batch_size, x.device, x.dtype, progress)
    check_batch("x", x, condition)
    positive_integer("draws", draws)
    width = None if bin_width is None else positive("bin_width", bin_width)
    check_end("the paths end", prior, denoiser.sde, plan.nodes[0].t)
    carrier = Carrier(denoiser, rule, seeds_of(seeds, len(x)), tuple(x.shape[1:]), condition or {}, batching)
    return _Paths(carrier, plan, interpolation, draws, prior, width).bound(x)


@dataclass(frozen=True)
class _Paths:
    """What a bound's paths share; ``carrier`` has the seeds of the samples."""

    carrier: Carrier
    plan: Plan
    interpolation: float
    draws: int
    prior: Callable[[Tensor], Tensor] | None
    bin_width: float | None

    def bound(self, x: Tensor) -> LogProb:
        """The bound of data (B, *)."""
        began, rule, d = time.perf_counter(), self.carrier.divergence, x[0].numel()
        found, latent = self._terms(x)
        check_finite(torch.cat([latent.flatten(1), found.flatten(1)], 1), self.plan)
        ones, k = torch.ones_like(found[:, 0, 0]), self.interpolation
        budget = {
            **dict(zip(("prior", "integral", "martingale"), found.mean(1).unbind(1), strict=True)),
            "truncation": d * math.log(self.plan.nodes[0].alpha) * ones,  # of p_T, to the scale of x / alpha
            "offset": d * math.log(self.bin_width or 1.0) * ones,
        }
        nfe = 2 * self.plan.steps * self.draws
        nats = torch.stack(list(budget.values())).sum(0)
        drawn = ["the paths"] * (k < 1) + ["the trace's probes"] * (not rule.exact(d))
        return LogProb(
            nats=nats,
            stderr=standard_error(found.sum(2)) if drawn else 0 * ones,
            freedom=degrees(self.draws, nats),
            stderr_of=" and ".join(drawn),
            nfe=nfe,
            nfe_per_sample=torch.full((len(x),), nfe),
            products=nfe * rule.products(d),
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
        """Prior, integral and martingale of every path (B, draws, 3), and the ends of the first ones (B, *)."""
        last, sde = self.plan.nodes[0], self.plan.sde
        batches = self.carrier.batching.rows(len(x))
        # every path has a seed of its own, the k-th whatever the number of draws
        own = [
            torch.randint(2**62, (self.draws,), generator=solvers.generator(seed, _PATHS)).tolist()
            for seed in self.carrier.seeds
        ]
        carriers = [replace(self.carrier, seeds=[row[k] for row in own]) for k in range(self.draws)]
        found, latents = [], []
        with self.carrier.batching.bar(self.draws * len(batches), "bound") as bar, torch.no_grad():
            for rows in batches:
                terms, ends = [], []
                for carrier in carriers:
                    problem, seeds = carrier.problem(rows), carrier.seeds[rows]
                    y, integral, martingale = _climb(problem, x[rows], self.plan.nodes[::-1], self.interpolation, seeds)
                    ends.append((last.alpha * y).view(x[rows].shape))
                    terms.append(torch.stack([prior_at(self.prior, sde, ends[-1]), integral, martingale], 1))
                    bar.update()
                latents.append(ends[0])
                found.append(torch.stack(terms, 1))
        return torch.cat(found), torch.cat(latents)


def _climb(
    problem: WithLogDensity, x: Tensor, nodes: tuple[Node, ...], k: float, seeds: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """One path of each sample x (B, *) through nodes from data to noise: y = x / alpha at its end (B, d), the integral
    and the martingale (B,) in nats."""
    m, d = problem.channels, x[0].numel()
    y = problem.start(x, nodes[0])[:, :d] / nodes[0].alpha
    source = SeededNoise(seeds, (d,), torch.float64, y.device)
    integral, martingale = torch.zeros_like(y[:, 0]), torch.zeros_like(y[:, 0])

    def at(y: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """eps (B, d), and d - c = r div eps (B,)."""
        found = problem.predict(torch.cat([node.alpha * y, y.new_zeros(len(y), m)], 1), node)
        # of channels at 0, x0 is (1 + r) M / r with M = -r (c - d / (1 + r^2))
        c = d / (1 + node.ratio**2) - found.x0[:, d:].mean(1) / (1 + node.ratio)
        return found.eps[:, :d], d - c

    def integrand(eps: Tensor, spread: Tensor) -> Tensor:
        return (2 - k) * spread - (1 - k) * eps.square().sum(1)

    for t, s in pairwise(nodes):
        variance, rise = (1 - k) * (s.ratio**2 - t.ratio**2), k * (s.ratio - t.ratio)
        noise = math.sqrt(variance) * source(*_ANY) if k < 1 else torch.zeros_like(y)
        eps, spread = at(y, t)
        ahead, spread_ahead = at(y + rise * eps + noise, s)
        both = integrand(eps, spread) + integrand(ahead, spread_ahead)
        integral = integral + 0.5 * math.log(s.ratio / t.ratio) * both
        # Stein's identity: the mean of (ahead / s) . noise is the variance times that of the divergence there
        swing = ((eps / t.ratio + ahead / s.ratio) * noise).sum(1) - variance / s.ratio**2 * spread_ahead
        martingale = martingale + 0.5 * swing
        y = y + 0.5 * rise * (eps + ahead) + noise
    return y, integral, martingale
