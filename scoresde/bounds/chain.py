"""The variational bound of a discrete chain, term by term.

-log p(x0) <= L_N + sum_{0 < i < N} L_i + L_0 (Ho et al. 2020, arXiv:2006.11239, eq. 5): L_N = KL(q(x_N | x0), prior),
L_i = E KL(q(x_{i-1} | x_i, x0), p(x_{i-1} | x_i)) and L_0 = -E log p(x0 | x_0). The indices are those of ``Chain``: x_0
is the least noisy node, one step from the data; only in L_N, x_N means the last node, whose index is N - 1. The bound
is for the likelihood of the model's reverse chain, not for that of its ODE.

The budget of ``chain_bound`` contains ``prior`` = -L_N, ``diffusion``, the sum of -L_i, ``decoder`` = -L_0,
``dequantisation`` and ``offset``. The ``terms`` (B, N + 1) are L_0 .. L_{N-1}, L_N, if all were evaluated.

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
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import solvers
from solvers import InputError, Prediction, SeededNoise, Solver
from solvers.errors import positive_integer
from solvers.one_step.ancestral import DDPM, posterior
from solvers.time_grids.network_steps import train_timesteps
from solvers.types.answers import predicted

from ..io.inputs import Array, Seeds
from ..likelihood.inputs import seeds_of
from ..likelihood.result import LogProb, with_counts
from ..models.counting import counted
from ..models.evaluation import evaluation
from ..models.model import as_model
from ..paths.base import SDE, ModelLike, sdes
from ..paths.chain import Chain, reverse_kernel
from ..sampling.batches import Batching, batch_of
from ..sampling.failures import check_how
from .continuous import prior_kl
from .decoders import Decoder, decoders
from .parts import offset_of, reported, rows_of, total, width_of

# the largest mean distance between log(alpha / sigma) of a chain and of the model's path
FAR = 0.6
_INDICES = 5  # label of the generator's stream


def chain_of(sde: SDE, count: int | None = None) -> Chain:
    """The chain of an SDE: its own if it is a chain's path, otherwise one of ``count`` nodes, by default 1000.

    Raises:
        InputError: the nodes leave the SDE's range of t, on which its models were trained.
    """
    return within(Chain(sde, train_timesteps(sde, count)), sde)


def within(chain: Chain, sde: SDE) -> Chain:
    """The chain itself, after a check that it suits a model on ``sde``.

    Raises:
        InputError: it is not a chain; its nodes leave the SDE's range of t; its noise levels differ from the SDE's.
    """
    if not isinstance(chain, Chain):
        raise InputError(f"chain must be a Chain, such as sde.chain(1000), got {chain!r}")
    first, last = chain.path.t_min, chain.path.t_max
    slack = 1e-9 * (sde.t_max - sde.t_min)
    if first < sde.t_min - slack or last > sde.t_max + slack:
        raise InputError(
            f"the chain's {chain.count} nodes cover t in [{first:g}, {last:g}], but the model's path, "
            f"{sdes.info_of(sde).name}, covers [{sde.t_min:g}, {sde.t_max:g}]: pass a different chain"
        )
    # the chain need not be on the model's path: the embeddings "song" and "ho" stay near it, except for few nodes
    nodes = chain.stacked
    inside = nodes.t[1:].clamp(sde.t_min, sde.t_max)
    away = float((torch.log(nodes.alpha[1:] / nodes.sigma[1:]) - sde(inside).lam).abs().mean())
    if not away < FAR:
        raise InputError(
            f"the chain has different noise levels than the model's path, {sdes.info_of(sde).name}: their "
            f"log(alpha / sigma) differ by {away:.3g} on average"
        )
    return chain


def _double(x: Tensor) -> Tensor:
    """The tensor in float64; on the CPU if its device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def prior_term(chain: Chain, x0: Tensor) -> Tensor:
    """The term L_N = KL(q(x_{N-1} | x0) | N(0, std^2 I)) (B,) in nats, for x0 (B, *)."""
    return prior_kl(_double(x0), chain.node(chain.count - 1), chain.path.prior().std)


def step_terms(
    chain: Chain, index: Tensor, x0: Tensor, eps: Tensor, prediction: Prediction, kernel: DDPM, decoder: Decoder
) -> Tensor:
    """The terms L_i (B,) in nats, float64, each at one draw of x_i = alpha_i x0 + sigma_i eps.

    With the posterior's variance beta_tilde and the model's variance v, L_i is the sum over dimensions of
    (log(v / beta_tilde) + (beta_tilde + gap^2) / v - 1) / 2. Here gap = on_x0 (sigma_i / alpha_i) (eps_model - eps) is
    the distance of the means. L_0 is the negative log-probability under the decoder.

    Args:
        index: the index i of each sample, (B,) in 0..N-1.
        prediction: the model's prediction (B, *) at x_i.
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
    mean = (x0 - wide.ratio * error)[first]  # the mean of the step to the data is the predicted x0
    variance = (v * torch.ones_like(error))[first]
    decoded = -decoder.log_prob(x0[first], mean, variance).flatten(1).sum(1)
    return terms.masked_scatter(first, decoded)


def chain_bound(
    denoiser: ModelLike,
    x: Array,
    kernel: str | Solver = "ddpm(variance=beta)",
    *,
    chain: Chain | None = None,
    decoder: str | Decoder = "gaussian",
    bin_width: float | None = None,
    indices: int | None = None,
    seeds: Seeds | None = None,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> LogProb:
    """Variational lower bound, in nats, of log p(x) under a model's reverse chain; the top of the module defines it.

    Args:
        x: data (B, *): levels for the decoders ``levels`` and ``discretised``; otherwise continuous data, or levels
            spread over their bins.
        kernel: ``ddpm(variance=...)``, which sets the variance of the reverse chain.
        chain: the chain; by default the SDE's own, or one of 1000 nodes if the SDE has none.
        decoder: ``gaussian``, ``discretised(bin_width=..., low=-1, high=1)`` or ``levels(...)``.
        bin_width: the bin width of data that were spread over their bins (``dequantise``), for bits/dim.
        indices: the number of terms between L_0 and L_N to evaluate for each sample, evenly spaced from a random start.
            The estimate is unbiased. By default all terms are evaluated, with one draw of the noise each.
        seeds, batch_size, on_failure: as in ``log_prob``.

    Raises:
        InputError: see ``Chain`` and ``DDPM``; also if the data are empty, not floats, not finite or not at the
            decoder's levels, or the chain leaves the range of the model's path.
    """
    check_how(on_failure)
    x, conditions = batch_of("x", x, condition, denoiser := as_model(denoiser))
    method, rule, x = reverse_kernel(kernel), decoders.make(decoder), x.detach()
    chain = chain_of(denoiser.sde) if chain is None else within(chain, denoiser.sde)
    width, seeds = width_of(rule, x, bin_width), seeds_of(seeds, len(x))
    between, count = chain.count - 1, _count_of_terms(chain, indices)
    began, batching, parts = time.perf_counter(), Batching(batch_size, progress=progress), []
    batches = batching.rows(len(x))
    bar = batching.bar((count + 1) * len(batches), "bound")
    with bar, evaluation(denoiser), torch.no_grad(), counted() as work:
        for rows in batches:
            given = rows_of(conditions, rows)
            parts.append(_terms(denoiser, chain, x[rows], seeds[rows], given, count, method, rule, bar.update))
    terms, latent = (torch.cat(each) for each in zip(*parts, strict=True))
    last, whole = prior_term(chain, x).cpu(), count == between
    budget = {
        "prior": -last,
        "diffusion": -(between / count) * terms[:, 1:].sum(1),
        "decoder": -terms[:, 0],
        "dequantisation": 0 * last,
        "offset": offset_of(rule, x, width),
    }
    stderr, seconds = math.nan * last, time.perf_counter() - began
    return reported(with_counts(LogProb(
        total(budget), stderr, count + 1, latent, budget, str(method),
        f"a chain of {chain.count} nodes", "", seconds, width, "lower bound, of the reverse chain",
        torch.cat([terms, last[:, None]], 1) if whole else None, stderr_of="the draws of noise, one a term",
    ), work), on_failure)  # fmt: skip


def _count_of_terms(chain: Chain, indices: int | None) -> int:
    """The number of terms between the first and the last to evaluate, checked."""
    between = chain.count - 1
    count = between if indices is None else positive_integer("indices", indices)
    if count > between:
        raise InputError(f"indices={count}, but the chain has {between} terms between the first and the last")
    return count


def _terms(
    denoiser: ModelLike,
    chain: Chain,
    x0: Tensor,
    seeds: list[int],
    conditions: Mapping[str, Tensor],
    count: int,
    kernel: DDPM,
    decoder: Decoder,
    advance: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    """Evaluates L_0 and ``count`` of the terms between L_0 and L_N, for samples ``x0`` (B, *).

    Returns the terms (B, count + 1), in nats on the CPU, and the noisy samples (B, *) of the last term.
    """
    between, first = chain.count - 1, chain.node(0)
    source = SeededNoise(seeds, tuple(x0.shape[1:]), x0.dtype, x0.device)
    start = torch.zeros(len(x0), dtype=torch.float64)
    if count < between:  # from each sample's seed, in a stream that nothing else uses
        streams = (solvers.generator(seed, _INDICES) for seed in seeds)
        start = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
    found = []
    for k in range(count + 1):
        index = torch.zeros(len(x0), dtype=torch.long)
        if k:
            index = 1 + (between * (k - 1 + start) / count).long().clamp(max=between - 1)
        at, _ = chain.steps(index)
        wide, eps = at.like(x0), source(first, first)
        noisy = wide.alpha * x0 + wide.sigma * eps
        prediction = predicted(denoiser.predict, noisy, at, conditions)
        found.append(step_terms(chain, index, x0, eps, prediction, kernel, decoder).cpu())
        advance()
    return torch.stack(found, 1), noisy
