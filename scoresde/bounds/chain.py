"""The variational bound of a discrete chain, term by term.

-log p(x0) <= L_N + sum_{0 < i < N} L_i + L_0 (Ho et al. 2020, arXiv:2006.11239, eq. 5): L_N = KL(q(x_N | x0), prior),
L_i = E KL(q(x_{i-1} | x_i, x0), p(x_{i-1} | x_i)) and L_0 = -E log p(x0 | x_0), with indices as in ``chains``: x_0 is
the least noisy node, one step from the data, and x_N here the last. It bounds the likelihood of the model's reverse
chain, not of its ODE.

The budget of ``chain_bound`` holds ``prior`` -L_N, ``diffusion`` the sum of -L_i, ``decoder`` -L_0, ``dequantisation``
and ``offset``; its ``terms`` (B, N + 1), where all were asked for, are L_0 .. L_{N-1}, L_N.

>>> import scoresde
>>> target = scoresde.targets.Gaussian(torch.zeros(4), 1.0)
>>> x = target.sample(200, torch.Generator().manual_seed(0))
>>> bound = chain_bound(target.denoiser(scoresde.chains.DDPMChain("linear").sde()), x)
>>> abs(float((target.log_prob(x) - bound.nats).mean())) < 0.4  # of one draw each
True
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError, Prediction, SeededNoise, Solver
from solvers.errors import positive_integer
from solvers.one_step.ancestral import DDPM, posterior
from solvers.time_grids.network_steps import train_timesteps

from ..likelihood.inputs import seeds_of
from ..likelihood.result import LogProb
from ..paths.base import SDE, Denoises, sdes
from ..paths.chain import Chain, reverse_kernel
from ..sampling.batches import Batching, check_batch
from .continuous import prior_kl
from .decoders import Decoder, decoders
from .parts import finite_sum, offset_of, rows_of, width_of

# how far the mean log(alpha / sigma) of a chain may be from that of the model's path
FAR = 0.6
_INDICES = 5  # label of the generator's stream


def chain_of(sde: SDE, count: int | None = None) -> Chain:
    """The chain of an SDE: its own where it is a chain's path, else of ``count`` nodes, by default 1000.

    Raises:
        InputError: its nodes leave the SDE's range, where its models know the labels.
    """
    return within(Chain(sde, train_timesteps(sde, count)), sde)


def within(chain: Chain, sde: SDE) -> Chain:
    """The chain.

    Raises:
        InputError: it is not a chain, or its nodes leave an SDE's range of t.
    """
    if not isinstance(chain, Chain):
        raise InputError(f"chain is a Chain, such as sde.chain(1000), got {chain!r}")
    first, last = chain.path.t_min, chain.path.t_max
    slack = 1e-9 * (sde.t_max - sde.t_min)
    if first < sde.t_min - slack or last > sde.t_max + slack:
        raise InputError(
            f"the chain's {chain.count} nodes go over t in [{first:g}, {last:g}], but the model's path, "
            f"{sdes.info_of(sde).name}, over [{sde.t_min:g}, {sde.t_max:g}]: give another chain, or the model its path"
        )
    # the model's path is another: Song's and Ho's betas stay near it, but for the coarsest chains
    nodes = chain.stacked
    inside = nodes.t[1:].clamp(sde.t_min, sde.t_max)
    away = float((torch.log(nodes.alpha[1:] / nodes.sigma[1:]) - sde(inside).lam).abs().mean())
    if not away < FAR:
        raise InputError(
            f"the chain has other noise levels than the model's path, {sdes.info_of(sde).name}: their "
            f"log(alpha / sigma) are {away:.3g} apart on average"
        )
    return chain


def _double(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device, Apple's, has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def prior_term(chain: Chain, x0: Tensor) -> Tensor:
    """L_N = KL(q(x_{N-1} | x0) | N(0, std^2 I)) (B,) in nats, for x0 (B, *)."""
    return prior_kl(_double(x0), chain.node(chain.count - 1), chain.path.prior().std)


def step_terms(
    chain: Chain, index: Tensor, x0: Tensor, eps: Tensor, prediction: Prediction, kernel: DDPM, decoder: Decoder
) -> Tensor:
    """L_i at one draw of x_i = alpha_i x0 + sigma_i eps each: (B,) nats, float64.

    With the posterior's variance beta_tilde and the model's v, L_i is the sum over dimensions of
    (log(v / beta_tilde) + (beta_tilde + gap^2) / v - 1) / 2, gap = on_x0 (sigma_i / alpha_i) (eps_model - eps), the
    distance of the means; L_0 is the decoder's.

    Args:
        index: (B,) in 0..N-1.
        prediction: the model's at x_i, (B, *).
    """
    at, below = chain.steps(index)
    error = _double(prediction.eps - eps)
    nu = None if prediction.nu is None else _double(prediction.nu)
    x0 = _double(x0)
    wide, q = at.like(x0), posterior(at, below)

    def column(values: Any) -> Any:
        return values.to(x0.device).view(wide.alpha.shape)

    v = kernel.variance_of(wide, below.like(x0), nu, chain.lowest)
    tilde = column(torch.where(index == 0, chain.lowest, q.variance))
    gap = column(q.on_x0 * at.ratio) * error
    terms: Tensor = (0.5 * (torch.log(v / tilde) + (tilde + gap**2) / v - 1)).expand(x0.shape).flatten(1).sum(1)
    first = (index == 0).to(x0.device)
    if not first.any():
        return terms
    mean = (x0 - wide.ratio * error)[first]  # the posterior's mean at the data is the prediction of x0
    variance = (v * torch.ones_like(error))[first]
    decoded = -decoder.log_prob(x0[first], mean, variance).flatten(1).sum(1)
    return terms.masked_scatter(first, decoded)


def chain_bound(
    denoiser: Denoises,
    x: Tensor,
    kernel: str | Solver = "ddpm(variance=beta)",
    *,
    chain: Chain | None = None,
    decoder: str | Decoder = "gaussian",
    bin_width: float | None = None,
    indices: int | None = None,
    seeds: Iterable[int] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogProb:
    """The variational lower bound of log p(x), x (B, *), under the reverse chain of a model, in nats; see the module.

    Args:
        x: levels for the decoder ``discretised``, else continuous data, or levels spread over their bins.
        kernel: ``ddpm(variance=...)``, the variance of the reverse chain.
        chain: by default the SDE's own, else of 1000 nodes.
        decoder: ``gaussian``, or ``discretised(bin_width=..., low=-1, high=1)``.
        bin_width: of data that were spread over their bins (``dequantise``), for bits/dim.
        indices: how many of the terms between L_0 and L_N to evaluate for each sample, spread evenly from a random
            start: an unbiased estimate. By default all, one draw of the noise each.
        seeds, batch_size: as for ``log_prob``.

    Raises:
        InputError: see ``Chain`` and ``DDPM``; also data that are empty, not floats, not finite, or not at the
            decoder's levels, and a chain that leaves the range of the model's path.
    """
    check_batch("x", x, condition)
    method, rule = reverse_kernel(kernel), decoders.make(decoder)
    chain = chain_of(denoiser.sde) if chain is None else within(chain, denoiser.sde)
    width, seeds = width_of(rule, x, bin_width), seeds_of(seeds, len(x))
    between, asked = chain.count - 1, _asked(chain, indices)
    began, batching, parts = time.perf_counter(), Batching(batch_size, progress=progress), []
    batches = batching.rows(len(x))
    with batching.bar((asked + 1) * len(batches), "bound") as bar, torch.no_grad():
        for rows in batches:
            given = rows_of(condition, rows)
            parts.append(_terms(denoiser, chain, x[rows], seeds[rows], given, asked, method, rule, bar.update))
    terms, latent = (torch.cat(each) for each in zip(*parts, strict=True))
    last, whole = prior_term(chain, x).cpu(), asked == between
    budget = {
        "prior": -last,
        "diffusion": -(between / asked) * terms[:, 1:].sum(1),
        "decoder": -terms[:, 0],
        "dequantisation": 0 * last,
        "offset": offset_of(rule, x, width),
    }
    stderr, seconds = math.nan * last, time.perf_counter() - began
    return LogProb(
        finite_sum(budget), stderr, asked + 1, latent, budget, str(method), f"a chain of {chain.count} nodes", "",
        seconds, width, "lower bound, of the reverse chain", torch.cat([terms, last[:, None]], 1) if whole else None,
        stderr_of="the draws of noise, one a term",
    )  # fmt: skip


def _asked(chain: Chain, indices: int | None) -> int:
    """How many of the terms between the first and the last are evaluated."""
    between = chain.count - 1
    asked = between if indices is None else positive_integer("indices", indices)
    if asked > between:
        raise InputError(f"indices={asked}, but the chain has {between} terms between the first and the last")
    return asked


def _terms(
    denoiser: Denoises,
    chain: Chain,
    x0: Tensor,
    seeds: list[int],
    conditions: Mapping[str, Tensor],
    asked: int,
    kernel: DDPM,
    decoder: Decoder,
    advance: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    """L_0 and ``asked`` of the terms between it and the last (B, asked + 1), in nats on the CPU, and the last noisy
    samples (B, *)."""
    between, first = chain.count - 1, chain.node(0)
    source = SeededNoise(seeds, tuple(x0.shape[1:]), x0.dtype, x0.device)
    start = torch.zeros(len(x0), dtype=torch.float64)
    if asked < between:  # of each sample's seed, apart from the streams of other uses
        streams = (solvers.generator(seed, _INDICES) for seed in seeds)
        start = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
    found = []
    for k in range(asked + 1):
        index = torch.zeros(len(x0), dtype=torch.long)
        if k:
            index = 1 + (between * (k - 1 + start) / asked).long().clamp(max=between - 1)
        at, _ = chain.steps(index)
        wide, eps = at.like(x0), source(first, first)
        noisy = wide.alpha * x0 + wide.sigma * eps
        prediction = denoiser.predict(noisy, at, **conditions)
        found.append(step_terms(chain, index, x0, eps, prediction, kernel, decoder).cpu())
        advance()
    return torch.stack(found, 1), noisy
