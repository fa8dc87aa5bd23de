"""Time samplers: rules that draw the times at which a loss is trained or the integral of a bound is evaluated.

A sampler is a quantile function: it maps a fraction u in (0, 1) to a time, and uniform fractions to times of its law.
The fractions come from elsewhere: independent ones for the rows of a batch, or evenly spaced ones
(``LowDiscrepancy``).

A sampler changes what a loss means: with times of density p, a weighting w trains the integral of p w times the error.
This is how EDM is defined. If instead the sampler is only meant to reduce the variance, each loss is multiplied by the
ratio of two densities, and its expectation stays (``importance``, ``adaptive``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from solvers import InputError, Node, Registry
from solvers.noise.draws import Draws, Stream
from solvers.registry.options import Options
from solvers.registry.ranges import AnyPositive, Range
from solvers.time_grids.network_steps import train_timesteps

from .base import SDE


class TimeSampler(Options):
    """A rule that draws times on a path. Each sampler is a frozen dataclass; its fields are its options."""

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        """The times (n,) in [t_min, t_max] at fractions u (n,) in (0, 1), rising in u; both float64 on the CPU."""
        raise NotImplementedError

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        """The fractions (B,) of the rows of a batch, float64 on the CPU: each is uniform in (0, 1)."""
        return draws.uniform(stream)[:, 0]

    def weighted_at(self, sde: SDE, u: Tensor, state: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
        """The times (n,) at fractions u (n,), and the factors (n,) of the losses there; None where all are 1.

        Args:
            state: what ``state`` returned; it may move the times.
        """
        return self.times_at(sde, u), None

    def sample(self, sde: SDE, draws: Draws, state: nn.Module | None = None) -> Tensor:
        """The times (B,) of the rows of a batch, float64 on the CPU."""
        return self.weighted_at(sde, self.fractions(draws), state)[0]

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        """The density of the times at t (n,), by t; inf at an end that has a probability of its own.

        Raises:
            InputError: the sampler has no density.
        """
        raise InputError(f"the time sampler {self} has no density")

    def state(self) -> nn.Module | None:
        """What the sampler remembers of the losses, as buffers; None if that is nothing."""
        return None

    def remember(self, state: nn.Module | None, u: Tensor, losses: Tensor) -> None:
        """Puts the losses (n,) at fractions u (n,) into the state, with the factors by which they were multiplied."""

    def __str__(self) -> str:
        return times.format(self)


times: Registry[TimeSampler] = Registry("time sampler", TimeSampler)


@times.register("uniform", reference="Song et al. 2021, arXiv:2011.13456, eq. 7")
@dataclass(frozen=True)
class Uniform(TimeSampler):
    """Uniform in t."""

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (sde.t_max - sde.t_min))


@times.register("lognormal", reference="Karras et al. 2022, arXiv:2206.00364, table 1")
@dataclass(frozen=True)
class LogNormal(TimeSampler):
    """Normal in the log of the noise level: log(sigma / alpha) ~ N(mean, std^2), clipped to the path's range."""

    mean: float = -1.2
    std: AnyPositive = 1.2

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return sde.times_of_lams(-self.mean - self.std * torch.special.ndtri(u))

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        node = sde(t)
        z = (-node.lam - self.mean) / self.std
        normal = torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi))
        ends = (t <= sde.t_min) | (t >= sde.t_max)
        return (normal * _slope(node)).masked_fill(ends, math.inf)


@times.register("logit_normal", reference="Esser et al. 2024, arXiv:2403.03206, eq. 19")
@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """The share of t in [t_min, t_max] is a sigmoid of a normal number: logit(share) ~ N(mean, std^2).

    On rectified flow, except for the shortened range, it is ``lognormal`` of the same mean and deviation.
    """

    mean: float = 0.0
    std: AnyPositive = 1.0

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        share = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return (sde.t_min + (sde.t_max - sde.t_min) * share).clamp(sde.t_min, sde.t_max)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        length = sde.t_max - sde.t_min
        share = (t - sde.t_min) / length
        z = (torch.logit(share) - self.mean) / self.std
        return torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi) * share * (1 - share) * length)


@times.register(
    "logsnr",
    aliases=("likelihood",),
    reference="Kingma et al. 2021, arXiv:2107.00630, section 5; Song et al. 2021, arXiv:2101.09258",
)
@dataclass(frozen=True)
class LogSNR(TimeSampler):
    """Uniform in lam = log(alpha / sigma): the density g^2 / sigma^2 of the likelihood's importance sampling.

    With unit weight on the error of eps this is the likelihood's weighting. The quantiles have a closed form on every
    path on which t(lam) has one: VP, sub-VP, VE, EDM, cosine and rectified flow.
    """

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        high, low = _ends(sde)
        return sde.times_of_lams(high - (high - low) * u)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        high, low = _ends(sde)
        return _slope(sde(t)) / (high - low)


def _ends(sde: SDE) -> list[float]:
    """The values of lam at t_min and t_max."""
    ends: list[float] = sde(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).lam.tolist()
    return ends


def _slope(node: Node[Tensor]) -> Tensor:
    """The slope -d lam / dt (n,) at nodes (n,)."""
    return node.dsigma / node.sigma - node.dalpha / node.alpha


@times.register("discrete", reference="Ho et al. 2020, arXiv:2006.11239, algorithm 1")
@dataclass(frozen=True)
class Discrete(TimeSampler):
    """Uniform over the nodes i = 0..N-1 of a chain, at t = t_min + i / (N - 1) (t_max - t_min).

    With unit weight on the error of eps this is DDPM's L_simple and, on VE, SMLD's loss with weights sigma^2 (Song and
    Ermon 2019, arXiv:1907.05600, eq. 6).

    ``num_train_timesteps`` is N; by default that of the SDE, or 1000 if the SDE has none.
    """

    num_train_timesteps: Annotated[int, Range(2)] | None = None

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        count = train_timesteps(sde, self.num_train_timesteps)
        share = (u * count).floor().clamp(0, count - 1) / (count - 1)
        return (1 - share) * sde.t_min + share * sde.t_max


@times.register("low_discrepancy", reference="Kingma et al. 2021, arXiv:2107.00630, appendix on low-discrepancy times")
@dataclass(frozen=True)
class LowDiscrepancy(TimeSampler):
    """Evenly spaced from one random start: the fractions u, u + 1/B, u + 2/B, ... modulo 1 for the B rows of a batch.

    Each single time has the law of the sampler ``over``, so means are unbiased; the B times together leave no gaps.

    Args:
        over: the sampler whose fractions are spread.
    """

    over: TimeSampler = field(default=Uniform())

    def times_at(self, sde: SDE, u: Tensor) -> Tensor:
        return self.over.times_at(sde, u)

    def fractions(self, draws: Draws, stream: Stream = "times") -> Tensor:
        places = torch.arange(draws.places.start, draws.places.stop, draws.places.step, dtype=torch.float64)
        return (draws.shared(stream) + places / draws.batch) % 1

    def weighted_at(self, sde: SDE, u: Tensor, state: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
        return self.over.weighted_at(sde, u, state)

    def density(self, sde: SDE, t: Tensor) -> Tensor:
        return self.over.density(sde, t)

    def state(self) -> nn.Module | None:
        return self.over.state()

    def remember(self, state: nn.Module | None, u: Tensor, losses: Tensor) -> None:
        self.over.remember(state, u, losses)
