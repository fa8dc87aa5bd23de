"""The variational bound of a model's reverse SDE, in continuous time.

With gamma = -2 lam (minus the log signal-to-noise ratio) and any affine path from t_min to t_max,

    -log p(x0) <= KL(q(x_T | x0) | prior) + E[-log p(x0 | x_{t_min})] + 1/2 int gamma'(t) E |eps - eps_model|^2 dt

(Kingma et al. 2021, arXiv:2107.00630, eq. 11-17; on any other affine path g^2 / sigma^2 = gamma', so it is the bound
of Song et al. 2021, arXiv:2101.09258, theorem 3). Written over gamma, the integral depends only on the ends of the
path: the shape of a learned path between its ends (its interior) does not change the bound. The interior changes only
the variance of the estimate 1/2 gamma'(t) |eps - eps_model|^2 at a random t, and ``bound_losses.ContinuousBound``
trains it to reduce this variance.

>>> import scoresde
>>> target = scoresde.targets.Gaussian(torch.zeros(4), 1.0)
>>> x = target.sample(50, torch.Generator().manual_seed(0))
>>> bound = continuous_bound(target.denoiser(LearnedVP("linear", -13.0, 8.0)), x, draws=16)
>>> error = float(bound.stderr.square().mean() / 50) ** 0.5
>>> abs(float((target.log_prob(x) - bound.nats).mean())) < 3 * error  # the exact model's bound is tight
True
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from solvers import InputError, Node, SeededNoise
from solvers.errors import positive_integer
from solvers.noise.draws import Draws
from solvers.types.answers import predicted

from ..io.inputs import Array, Seeds
from ..likelihood.inputs import seeds_of
from ..likelihood.result import LogProb, degrees, standard_error, with_counts
from ..models.counting import counted
from ..models.evaluation import evaluation
from ..models.model import as_model
from ..paths.base import SDE, ModelLike
from ..paths.learned_vp import LearnedVP, node_of_gamma
from ..paths.time_samplers import LogSNR, LowDiscrepancy, TimeSampler, Uniform
from ..paths.time_samplers import times as samplers
from ..sampling.batches import Batching, batch_of
from ..sampling.failures import check_how
from .decoders import Decoder, Gaussian, decoders
from .parts import offset_of, reported, rows_of, total, width_of


def variable_of(sampler: TimeSampler) -> Literal["t", "logsnr"]:
    """The variable over which a time sampler is uniform.

    Raises:
        InputError: the sampler is uniform over neither t nor lam, so the weight of the integral is not known.
    """
    if isinstance(sampler, LowDiscrepancy):
        return variable_of(sampler.over)
    if isinstance(sampler, Uniform):
        return "t"
    if isinstance(sampler, LogSNR):
        return "logsnr"
    raise InputError(f"the continuous bound needs times low_discrepancy, uniform or logsnr, got {sampler}")


class Place(NamedTuple):
    """The times of a batch on a path, with what the bound needs there.

    Attributes:
        at: the nodes (B,).
        weight: the weights (B,) of |eps - eps_model|^2.
        first, last: the nodes at t_min and t_max, tensors without dimensions.
        interior: gamma and its derivative as functions of the interior alone, each (B,); its gradients pass through
            them. Empty unless the path is learned.
    """

    at: Node[Tensor]
    weight: Tensor
    first: Node[Tensor]
    last: Node[Tensor]
    interior: tuple[Tensor, ...] = ()


def place_of(sde: SDE, t: Tensor, over: Literal["t", "logsnr"]) -> Place:
    """The nodes of times t (B,), float64 on the CPU; gradients reach the weights of a learned path."""
    if not isinstance(sde, LearnedVP):
        first, last = (sde(torch.tensor(end, dtype=torch.float64)) for end in (sde.t_min, sde.t_max))
        at = sde(t)
        slope = 2 * (at.dsigma / at.sigma - at.dalpha / at.alpha)
        range_of_gamma = 2 * (first.lam - last.lam)
        weight = (sde.t_max - sde.t_min) * slope if over == "t" else range_of_gamma.expand(len(t))
        return Place(at, 0.5 * weight, first, last)
    low, high = sde.ends()
    share, rate = sde.share(t)
    # if the range of t is shortened, the ends also depend on the interior, which must not be trained by them: detach
    start, end = (
        low + (high - low) * u for u in sde.share(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))[0].detach()
    )
    gamma, slope = low + (high - low) * share.detach(), (high - low) * rate.detach()
    interior: tuple[Tensor, ...] = ()
    if share.requires_grad and over == "t":
        below, span = low.detach(), (high - low).detach()
        interior = (below + span * share, span * rate)
        gamma, slope = (v + (inner - inner.detach()) for v, inner in zip((gamma, slope), interior, strict=True))
    none = torch.zeros((), dtype=torch.float64)
    return Place(
        at=node_of_gamma(t, gamma, slope),
        weight=0.5 * ((sde.t_max - sde.t_min) * slope if over == "t" else (end - start).expand(len(t))),
        first=node_of_gamma(none + sde.t_min, start, none),
        last=node_of_gamma(none + sde.t_max, end, none),
        interior=interior,
    )


def in_float64(x: Tensor) -> Tensor:
    """The tensor in float64 if its device has it, otherwise unchanged."""
    return x if x.device.type == "mps" else x.double()


def prior_kl(x0: Tensor, node: Node | Node[Tensor], std: float) -> Tensor:
    """The divergence KL(N(alpha x0, sigma^2 I) | N(0, std^2 I)) (B,) in nats, for x0 (B, *) at a single node."""
    square = in_float64(x0).flatten(1).square().sum(1)
    alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).to(square) for v in (node.alpha, node.sigma))
    return 0.5 * ((alpha / std) ** 2 * square + x0[0].numel() * ((sigma / std) ** 2 - 1 - 2 * torch.log(sigma / std)))


def reconstruction(x0: Tensor, node: Node[Tensor], noise: Tensor, decoder: Decoder) -> Tensor:
    """The decoder's -log p(x0 | x) (B,) in nats at x = alpha x0 + sigma noise, both (B, *).

    The decoder receives N(x / alpha, ratio^2).
    """
    clean = in_float64(x0)
    ratio = node.ratio.to(clean)
    # a normal density depends only on the square of the noise, whose mean is 1, so it needs no draw
    draw = torch.ones_like(clean) if isinstance(decoder, Gaussian) else noise.to(clean)
    return -decoder.log_prob(clean, clean + ratio * draw, ratio**2).flatten(1).sum(1)


def diffusion(denoiser: ModelLike, x0: Tensor, place: Place, eps: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """The term weight |eps - eps_model|^2 (B,) in nats, at x = alpha x0 + sigma eps, both (B, *)."""
    node = place.at.like(x0)
    found = predicted(denoiser.predict, node.alpha * x0 + node.sigma * eps, place.at, conditions)
    error = in_float64(found.eps - eps).flatten(1)
    return place.weight.to(error) * error.square().sum(1)


def continuous_bound(
    denoiser: ModelLike,
    x: Array,
    *,
    draws: int = 64,
    sets: int = 4,
    times: str | TimeSampler = "low_discrepancy(over=logsnr)",
    decoder: str | Decoder = "gaussian",
    bin_width: float | None = None,
    seeds: Seeds | None = None,
    condition: Mapping[str, Array] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> LogProb:
    """Variational lower bound, in nats, of log p(x) under a model's reverse SDE in continuous time.

    Args:
        x: data (B, *): levels for the decoders ``levels`` and ``discretised``; otherwise continuous data, or levels
            spread over their bins.
        draws, sets: model evaluations per sample, in independent sets whose spread gives the standard error.
        times: the time sampler of each set. On fixed paths, times spread over lam give the least variance.
        decoder: the decoder of the state at t_min.
        bin_width: the bin width of data that were spread over their bins (``dequantise``), for bits/dim.
        seeds, batch_size, on_failure: as in ``log_prob``.

    Raises:
        InputError: the data are empty, not floats, not finite or not at the decoder's levels; ``draws`` is not a
            multiple of ``sets``; the time sampler is uniform over neither t nor lam; all samples fail.
    """
    check_how(on_failure)
    x, conditions = batch_of("x", x, condition, denoiser := as_model(denoiser))
    rule, sampler, sde, x = decoders.make(decoder), samplers.make(times), denoiser.sde, x.detach()
    over, width, seeds = variable_of(sampler), width_of(rule, x, bin_width), seeds_of(seeds, len(x))
    if positive_integer("draws", draws) % positive_integer("sets", sets):
        raise InputError(f"draws must be a multiple of sets, got {draws} and {sets}")
    began, batching, parts = time.perf_counter(), Batching(batch_size, progress=progress), []
    batches = batching.rows(len(x))
    bar = batching.bar(draws * len(batches), "bound")
    with bar, evaluation(denoiser), torch.no_grad(), counted() as work:
        ends = place_of(sde, torch.tensor([sde.t_max], dtype=torch.float64), over)
        for rows in batches:
            points = _points(sampler, sde, seeds[rows], draws, sets)
            places = [place_of(sde, points[:, k], over) for k in range(draws)]
            given = rows_of(conditions, rows)
            parts.append(_draws(denoiser, x[rows], seeds[rows], given, places, ends, rule, bar.update))
    between, decoded, latent = (torch.cat(each) for each in zip(*parts, strict=True))
    spread = (between + decoded).view(len(x), sets, -1).mean(2)
    budget = {
        "prior": -prior_kl(x, ends.last, sde.prior().std).cpu().double(),
        "diffusion": -between.mean(1),
        "decoder": -decoded.mean(1),
        "dequantisation": torch.zeros(len(x), dtype=torch.float64),
        "offset": offset_of(rule, x, width),
    }
    nats, seconds = total(budget), time.perf_counter() - began
    return reported(with_counts(LogProb(
        nats, standard_error(spread), draws, latent, budget, "continuous bound", str(sampler), "", seconds, width,
        "lower bound, of the reverse SDE", freedom=degrees(sets, nats), stderr_of="the draws of times and noise",
    ), work), on_failure)  # fmt: skip


def _draws(
    denoiser: ModelLike,
    x0: Tensor,
    seeds: list[int],
    conditions: Mapping[str, Tensor],
    places: Sequence[Place],
    ends: Place,
    decoder: Decoder,
    advance: Callable[[], Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluates the bound of samples (B, *) at each place.

    Returns the diffusion terms and the decoder's terms, both (B, len(places)) in nats on the CPU, and the noisy samples
    (B, *) at t_max.
    """
    source = SeededNoise(seeds, tuple(x0.shape[1:]), x0.dtype, x0.device)
    parts, recovered = [], []
    for place in places:
        parts.append(diffusion(denoiser, x0, place, source.draw(), conditions).cpu().double())
        recovered.append(reconstruction(x0, ends.first, source.draw(), decoder).cpu().double())
        advance()
    last = ends.last
    latent = last.alpha.to(x0) * x0 + last.sigma.to(x0) * source.draw()
    return torch.stack(parts, 1), torch.stack(recovered, 1), latent


def _points(sampler: TimeSampler, sde: SDE, seeds: Sequence[int], draws: int, sets: int) -> Tensor:
    """The times (B, draws) of samples, one set after the other; those of a sample depend on its seed alone."""
    u = fractions_of(sampler, seeds, draws, sets)
    return sampler.times_at(sde, u.flatten()).view_as(u)


def fractions_of(sampler: TimeSampler, seeds: Sequence[int], draws: int, sets: int) -> Tensor:
    """The fractions (B, draws) of samples, one set after the other; those of a sample depend on its seed alone."""
    u = [sampler.fractions(Draws.of(seed, k, draws // sets), "bound") for seed in seeds for k in range(sets)]
    return torch.cat(u).view(len(seeds), draws)
