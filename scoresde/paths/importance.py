"""Time samplers that reduce the variance of a loss and keep its expectation: they weight by the ratio of densities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from solvers import InputError
from solvers.noise.draws import Draws, Stream
from solvers.registry.ranges import Range, Share

from .base import SDE
from .time_samplers import LogNormal, LogSNR, LowDiscrepancy, TimeSampler, Uniform, times


@times.register("importance", reference="Song et al. 2021, arXiv:2101.09258, section on importance sampling")
@dataclass(frozen=True)
class Importance(TimeSampler):
    """Times of one sampler, and losses weighted so that their expectation is that of times of another one.

    The factor is the ratio of the densities of ``law`` and ``draw``. ``dsm(weighting=likelihood,
    times=importance(draw=logsnr, law=uniform))`` has the expected gradient of ``dsm(weighting=likelihood)``. The
    variance is finite only if ``draw`` draws the ends of the path often enough; ``lognormal`` may not.

    Args:
        draw: the sampler that draws the times.
        law: the sampler whose expectation is kept: uniform, logsnr or logit_normal.

    Raises:
        InputError: a sampler has no density, ``law`` has probability at single times, or ``draw`` remembers losses.
    """

    draw: TimeSampler = field(default=LogSNR())
    law: TimeSampler = field(default=Uniform())

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.law.over if isinstance(self.law, LowDiscrepancy) else self.law, LogNormal):
            raise InputError("importance: the law lognormal has a probability at the ends of the path; take logsnr")
        if self.draw.state() is not None or self.law.state() is not None:
            raise InputError("importance: adaptive keeps the expectation of its own option 'over'; use it alone")

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return self.draw.times_at(sde, u)

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        return self.draw.fractions(draws, stream)

    def weighted_at(self, sde: SDE, u: Tensor, state: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
        t, factor = self.draw.weighted_at(sde, u)
        ratio = self.law.density(sde, t) / self.draw.density(sde, t)
        return t, ratio if factor is None else factor * ratio

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        return self.draw.density(sde, t)


class History(nn.Module):
    """The last losses of each bin of fractions.

    Attributes:
        losses: (bins, history), float32; a ring for each bin.
        counts: how many losses each bin has received (bins,), int64.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, bins: int, history: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(bins, history))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.long))

    @torch.no_grad()
    def append(self, index: Tensor, losses: Tensor) -> None:
        """Adds losses (n,) to the bins of an index (n,); numbers that are not finite are left out."""
        kept = torch.isfinite(losses)
        index, order = torch.sort(index[kept], stable=True)
        losses = losses[kept][order]
        bins, size = self.losses.shape
        amounts = torch.bincount(index, minlength=bins)
        rank = torch.arange(len(index)) - (amounts.cumsum(0) - amounts)[index]  # within the bin, in order
        place = (self.counts.cpu()[index] + rank) % size
        newest = rank >= amounts[index] - size  # of more than fit, the last ones
        device = self.losses.device
        self.losses[index[newest].to(device), place[newest].to(device)] = losses[newest].to(self.losses)
        self.counts += amounts.to(device)

    def shares(self, floor: float) -> Tensor:
        """The probabilities (bins,) of the bins, float64 on the CPU: proportional to sqrt(E L^2), or to 1 at first."""
        bins, size = self.losses.shape
        even = torch.full((bins,), 1 / bins, dtype=torch.float64)
        moments = self.losses.cpu().double().square().mean(1).sqrt()
        if int(self.counts.min()) < size or not float(moments.sum()) > 0:
            return even
        return (1 - floor) * moments / moments.sum() + floor * even


@times.register("adaptive", reference="Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.3, eq. 18")
@dataclass(frozen=True)
class Adaptive(TimeSampler):
    """Times in proportion to sqrt(E L^2) of the last losses, each weighted so that the expectation is that of ``over``.

    The fractions of ``over`` are divided into bins. A bin is drawn in proportion to the root mean square of its last
    losses, and a loss in it is divided by the bin's density. Until every bin has ``history`` losses, times are those of
    ``over``. A training run keeps the losses in the loss's state.

    Args:
        over: the sampler whose expectation is kept.
        bins: how many bins.
        history: how many losses each bin remembers.
        floor: the share of times that do not depend on the losses.
    """

    over: TimeSampler = field(default=Uniform())
    bins: Annotated[int, Range(1, 10_000)] = 64
    history: Annotated[int, Range(1, 1000)] = 10
    floor: Share = 0.001

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return self.over.times_at(sde, u)

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        return self.over.fractions(draws, stream)

    def state(self) -> nn.Module | None:
        return History(self.bins, self.history)

    def weighted_at(self, sde: SDE, u: Tensor, state: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
        _, moved, factor = self._moved(u, state)
        t, own = self.over.weighted_at(sde, moved)
        return t, factor if own is None else factor * own

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        return self.over.density(sde, t)

    def remember(self, state: nn.Module | None, u: Tensor, losses: Tensor) -> None:
        index, _, factor = self._moved(u, state)
        _history(state).append(index, losses.detach().cpu().double() / factor)

    def _moved(self, u: Tensor, state: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
        """The bins (n,) of fractions u (n,), the fractions (n,) of ``over`` there, and the factors (n,)."""
        shares = _history(state).shares(self.floor)
        ends = shares.cumsum(0)
        ends = ends / ends[-1]
        index = torch.searchsorted(ends, u).clamp(max=self.bins - 1)
        starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])
        inside = ((u - starts[index]) / shares[index]).clamp(0, 1)
        return index, (index + inside) / self.bins, 1 / (self.bins * shares[index])


def _history(state: nn.Module | None) -> History:
    if not isinstance(state, History):
        raise InputError("adaptive times need the losses of earlier updates: pass state=loss.state(sde)")
    return state
